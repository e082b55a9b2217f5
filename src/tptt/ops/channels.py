"""Decay per channel (KDA, arXiv 2510.26692; GLA, 2312.06635): its effect on the reads and writes within a chunk.

All exponents are <= 0. A writer and a reader in the same block of positions get their own sum of log decays. In two
different blocks they get a product: the decay from the writer to the start of the reader's block, and from there to the
reader. This is differentiable PyTorch: the backward runs it again and asks autograd.
Legend: M chunks, W positions, C tokens, G query groups, K channels, b positions of a block.
"""

from typing import NamedTuple

import torch

from .chunk_shape import ChunkShape
from .decays import factor

BLOCK_POSITIONS = 8
"""Every pair within a block has K exponentials of its own: in a large block they would cost more than the products they
replace."""


class ChannelDecays(NamedTuple):
    """What `decay_channels` returns; `keys` and `of_keys` are None where no keys read."""

    keys: torch.Tensor | None  # [M, W, K]: k times the decay since the chunk's start
    queries: torch.Tensor  # [M, G * C, K]: q times that
    writers: torch.Tensor  # [M, W, K]: b times the decay until the chunk's end
    carried: torch.Tensor  # [M, K, 1]: the whole chunk's decay
    of_keys: torch.Tensor | None  # [M, W, W]: sum over channels of k_i b_j exp(G_i - G_j) for j < i, else 0
    of_queries: torch.Tensor  # [M, G * C, W]: the same of q_i, for j <= i


def decay_channels(
    shape: ChunkShape, keys: torch.Tensor | None, queries: torch.Tensor, writers: torch.Tensor, log_decay: torch.Tensor
) -> ChannelDecays:
    """From k [M, W, K] (None where only queries read), q [M, G * C, K], `writers` b = beta k [M, W, K] and log decays
    [M, W, K]."""
    since_start = factor(log_decay.cumsum(1))
    of_keys, of_queries = _overlaps(shape, keys, queries, writers, log_decay)
    return ChannelDecays(
        None if keys is None else keys * since_start,
        queries * shape.at_queries(since_start),
        writers * _until_end(log_decay),
        since_start[:, -1].unsqueeze(2),
        of_keys,
        of_queries,
    )


def _until_end(log_decay):
    """Decay from behind each position to the end of dimension 1."""
    after = torch.cat([log_decay[:, 1:], torch.zeros_like(log_decay[:, :1])], 1)
    return factor(after.flip(1).cumsum(1).flip(1))


def _overlaps(shape, keys, queries, writers, log_decay):
    block = _block_tokens(shape) * shape.writes
    past = writers[:, :0]
    of_keys, of_queries = [], []
    for start in range(0, shape.positions, block):
        here, width = slice(start, start + block), shape.positions - start - block
        rows_of_keys, rows_of_queries = _block(shape, keys, queries, writers, log_decay, past, start, block)
        if keys is not None:
            of_keys.append(torch.nn.functional.pad(rows_of_keys, (0, width)))
        of_queries.append(torch.nn.functional.pad(rows_of_queries, (0, width)))
        total = factor(log_decay[:, here].sum(1, keepdim=True))
        past = torch.cat([past * total, writers[:, here] * _until_end(log_decay[:, here])], 1)
    return None if keys is None else torch.cat(of_keys, 1), torch.cat(of_queries, 2).flatten(1, 2)


def _block_tokens(shape):
    tokens = 1
    while 2 * tokens <= shape.tokens and 2 * tokens * shape.writes <= BLOCK_POSITIONS:
        tokens *= 2
    return tokens


def _block(shape, keys, queries, writers, log_decay, past, start, block):
    """Rows of one block against all positions up to its end: keys [M, b, start + b] and queries [M, G, tokens of the
    block, ...]."""
    here = slice(start, start + block)
    tokens = slice(start // shape.writes, (start + block) // shape.writes)
    logs = log_decay[:, here]
    lower = logs.new_ones(block, block).tril()
    between = factor((logs.unsqueeze(2) * lower.tril(-1).unsqueeze(2)).cumsum(1))  # [M, reader, writer, K]
    pairs = between * writers[:, here].unsqueeze(1)
    since, before = factor(logs.cumsum(1)), past.transpose(1, 2)
    last = slice(shape.writes - 1, None, shape.writes)
    of_keys = None
    if keys is not None:
        near = torch.einsum("nik,nijk->nij", keys[:, here], pairs) * lower.tril(-1)
        of_keys = torch.cat([(keys[:, here] * since) @ before, near], 2)
    asking = queries.unflatten(1, (shape.groups, shape.tokens))[:, :, tokens]  # [M, G, tokens, K]
    near = torch.einsum("ngik,nijk->ngij", asking, pairs[:, last]) * lower[last]
    far = (asking * since[:, last].unsqueeze(1)) @ before.unsqueeze(1)
    return of_keys, torch.cat([far, near], 3)
