"""Decay per channel (KDA, arXiv 2510.26692; GLA, 2312.06635): what reads and writes within a chunk see of it.

All exponents are <= 0: a pair within a block of positions gets its own sum of log decays, a pair of two blocks the
product of the decay from the writer to the reader's block and from there to the reader. Written in differentiable
PyTorch: the backward runs it again and asks autograd. Legend: N chunks, W positions, R rows, K channels, b block.
"""

from typing import NamedTuple

import torch

from .plan import Plan

BLOCK_POSITIONS = 8
"""Within a block every pair has K exponentials of its own: small, or they cost more than the products they replace."""


class ChannelDecays(NamedTuple):
    """What `decay_channels` returns."""

    rows_decayed: torch.Tensor  # [N, R, K]: X times the decay since the chunk's start
    keys_decayed: torch.Tensor  # [N, W, K]: k times the decay until the chunk's end
    mixing: torch.Tensor  # [N, R, W]: sum over channels of X_i k_j exp(G_i - G_j) for j <= i (keys: j < i), else 0
    carried: torch.Tensor  # [N, K, 1]: the whole chunk's decay


def decay_channels(plan: Plan, rows: torch.Tensor, keys: torch.Tensor, log_decay: torch.Tensor) -> ChannelDecays:
    """From rows X [N, R, K], keys [N, W, K] and log decays [N, W, K]."""
    since_start = log_decay.cumsum(1).exp()
    return ChannelDecays(
        _spread(plan, rows, since_start),
        keys * _until_end(log_decay),
        _mixing(plan, rows, keys, log_decay),
        since_start[:, -1].unsqueeze(2),
    )


def _until_end(log_decay):
    """Decay from behind each position to the end of dimension 1."""
    after = torch.cat([log_decay[:, 1:], torch.zeros_like(log_decay[:, :1])], 1)
    return after.flip(1).cumsum(1).flip(1).exp()


def _spread(plan, rows, factor):
    """rows [N, R, K] times factor [N, W, K] of their positions, out of place."""
    queries = plan.queries(rows) * plan.of_queries(factor).unsqueeze(1)
    return torch.cat([rows[:, : plan.keys] * factor[:, : plan.keys], queries.flatten(1, 2)], 1)


def _mixing(plan, rows, keys, log_decay):
    block = _block_tokens(plan) * plan.steps
    starts = range(0, plan.positions, block)
    past = keys[:, :0]
    key_rows, query_rows = [], []
    for start in starts:
        here = slice(start, start + block)
        of_block = _block(plan, rows, keys, log_decay, past, start, block)
        width = plan.positions - start - block
        for part, out in zip(of_block, (key_rows, query_rows), strict=True):
            out.append(torch.nn.functional.pad(part, (0, width)))
        total = log_decay[:, here].sum(1, keepdim=True).exp()
        past = torch.cat([past * total, keys[:, here] * _until_end(log_decay[:, here])], 1)
    queries = torch.cat(query_rows, 2).flatten(1, 2)
    return torch.cat([*key_rows, queries], 1) if plan.delta else queries


def _block_tokens(plan):
    tokens = 1
    while 2 * tokens <= plan.tokens and 2 * tokens * plan.steps <= BLOCK_POSITIONS:
        tokens *= 2
    return tokens


def _block(plan, rows, keys, log_decay, past, start, block):
    """Rows of one block against all positions up to its end: keys [N, b, start + b] and queries [N, G, b / N, ...]."""
    here = slice(start, start + block)
    tokens = slice(start // plan.steps, (start + block) // plan.steps)
    logs, ours = log_decay[:, here], keys[:, here]
    lower = logs.new_ones(block, block).tril()
    between = (logs.unsqueeze(2) * lower.tril(-1).unsqueeze(2)).cumsum(1).exp()  # [N, reader, writer, K]
    pairs = between * ours.unsqueeze(1)
    since = logs.cumsum(1).exp()
    own = rows[:, : plan.keys][:, here]  # [N, b or 0, K]
    queries = plan.queries(rows)[:, :, tokens]  # [N, G, b / N, K]
    last = slice(plan.steps - 1, None, plan.steps)
    of_keys = own.new_zeros(len(rows), 0, start + block)
    if plan.delta:
        near = torch.einsum("nik,nijk->nij", own, pairs) * lower.tril(-1)
        of_keys = torch.cat([(own * since) @ past.transpose(1, 2), near], 2)
    near = torch.einsum("ngik,nijk->ngij", queries, pairs[:, last]) * lower[last]
    far = (queries * since[:, last].unsqueeze(1)) @ past.transpose(1, 2).unsqueeze(1)
    return of_keys, torch.cat([far, near], 3)
