"""Decay per channel (KDA, arXiv 2510.26692; GLA, 2312.06635): what reads and writes within a chunk see of it.

All exponents are <= 0: a pair within a block of positions gets its own sum of log decays, a pair of two blocks the
product of the decay from the writer to the reader's block and from there to the reader. Written in differentiable
PyTorch: the backward runs it again and asks autograd. Legend: N chunks, W positions, R rows, K channels, b block.
"""

from typing import NamedTuple

import torch

from .decays import factor
from .plan import Plan

BLOCK_POSITIONS = 8
"""Within a block every pair has K exponentials of its own: small, or they cost more than the products they replace."""


class ChannelDecays(NamedTuple):
    """What `decay_channels` returns; the first and the fifth are None without keys that read."""

    keys: torch.Tensor | None  # [N, W, K]: k times the decay since the chunk's start
    queries: torch.Tensor  # [N, G * C, K]: q times that
    writes: torch.Tensor  # [N, W, K]: b times the decay until the chunk's end
    carried: torch.Tensor  # [N, K, 1]: the whole chunk's decay
    of_keys: torch.Tensor | None  # [N, W, W]: sum over channels of k_i b_j exp(G_i - G_j) for j < i, else 0
    of_queries: torch.Tensor  # [N, G * C, W]: the same of q_i, for j <= i


def decay_channels(
    plan: Plan, keys: torch.Tensor | None, queries: torch.Tensor, writes: torch.Tensor, log_decay: torch.Tensor
) -> ChannelDecays:
    """From k [N, W, K] (None where only queries read), q [N, G * C, K], b [N, W, K] and log decays [N, W, K]."""
    since_start = factor(log_decay.cumsum(1))
    of_keys, of_queries = _overlaps(plan, keys, queries, writes, log_decay)
    return ChannelDecays(
        None if keys is None else keys * since_start,
        queries * plan.of_queries(since_start),
        writes * _until_end(log_decay),
        since_start[:, -1].unsqueeze(2),
        of_keys,
        of_queries,
    )


def _until_end(log_decay):
    """Decay from behind each position to the end of dimension 1."""
    after = torch.cat([log_decay[:, 1:], torch.zeros_like(log_decay[:, :1])], 1)
    return factor(after.flip(1).cumsum(1).flip(1))


def _overlaps(plan, keys, queries, writes, log_decay):
    block = _block_tokens(plan) * plan.steps
    past = writes[:, :0]
    of_keys, of_queries = [], []
    for start in range(0, plan.positions, block):
        here, width = slice(start, start + block), plan.positions - start - block
        rows_of_keys, rows_of_queries = _block(plan, keys, queries, writes, log_decay, past, start, block)
        if keys is not None:
            of_keys.append(torch.nn.functional.pad(rows_of_keys, (0, width)))
        of_queries.append(torch.nn.functional.pad(rows_of_queries, (0, width)))
        total = factor(log_decay[:, here].sum(1, keepdim=True))
        past = torch.cat([past * total, writes[:, here] * _until_end(log_decay[:, here])], 1)
    return None if keys is None else torch.cat(of_keys, 1), torch.cat(of_queries, 2).flatten(1, 2)


def _block_tokens(plan):
    tokens = 1
    while 2 * tokens <= plan.tokens and 2 * tokens * plan.steps <= BLOCK_POSITIONS:
        tokens *= 2
    return tokens


def _block(plan, keys, queries, writes, log_decay, past, start, block):
    """Rows of one block against all positions up to its end: keys [N, b, start + b] and queries [N, G, b / N, ...]."""
    here = slice(start, start + block)
    tokens = slice(start // plan.steps, (start + block) // plan.steps)
    logs = log_decay[:, here]
    lower = logs.new_ones(block, block).tril()
    between = factor((logs.unsqueeze(2) * lower.tril(-1).unsqueeze(2)).cumsum(1))  # [N, reader, writer, K]
    pairs = between * writes[:, here].unsqueeze(1)
    since, before = factor(logs.cumsum(1)), past.transpose(1, 2)
    last = slice(plan.steps - 1, None, plan.steps)
    of_keys = None
    if keys is not None:
        near = torch.einsum("nik,nijk->nij", keys[:, here], pairs) * lower.tril(-1)
        of_keys = torch.cat([(keys[:, here] * since) @ before, near], 2)
    asking = queries.unflatten(1, (plan.groups, plan.tokens))[:, :, tokens]  # [N, G, b / N, K]
    near = torch.einsum("ngik,nijk->ngij", asking, pairs[:, last]) * lower[last]
    far = (asking * since[:, last].unsqueeze(1)) @ before.unsqueeze(1)
    return of_keys, torch.cat([far, near], 3)
