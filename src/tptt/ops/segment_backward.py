"""Backward of one segment: the adjoint of `segment.scan`, chunk by chunk from the last to the first.

With E = T^T du and Z = [-E; do] (rows as in X), per chunk (derivation in README.md):
    du = P^T do + k^ dS'      d[A; P] = D . (Z u^T)      dX~ = Z S^T      dk^ = u dS'^T      dS = gamma dS' + X~^T Z
Legend: N = n * B * H chunks, chunk-major; C tokens per chunk; G query groups; R = (1 + G) * C rows of X.
"""

from typing import NamedTuple

import torch

from .segment import carry, mask_, scan_states


class SegmentGrads(NamedTuple):
    """Gradients of one segment's inputs and of the state it started from."""

    queries: torch.Tensor  # [N, R - C, K], of scale * q
    keys: torch.Tensor  # [N, C, K]
    values: torch.Tensor  # [N, C, V]
    beta: torch.Tensor  # [N, C]
    log_decay: torch.Tensor | None  # [N, C]
    state: torch.Tensor  # [B*H, K, V]


def backward(segment, state, d_rows, d_state):
    """Gradients of `scan(segment, state)`.

    Args: state [B*H, K, V] the segment started from; d_rows [N, R, V] with the output's gradient from row C on (the
    first C rows are scratch space, overwritten); d_state [B*H, K, V] gradient of the state after the segment.
    """
    keys, size = segment.keys, segment.keys.shape[1]
    states, updates = scan_states(segment, state)
    d_states = _reverse_scan(segment, d_rows, d_state)
    before, d_after = states[:-1].flatten(0, 1), d_states[1:].flatten(0, 1)
    d_mixing = torch.bmm(d_rows, updates.transpose(1, 2))
    d_x = torch.bmm(d_rows, before.transpose(1, 2))
    d_keys = torch.bmm(updates, d_after.transpose(1, 2))
    d_log_decay = None
    if segment.decays is not None:
        d_carried = torch.linalg.vecdot(before.flatten(1), d_after.flatten(1))
        d_log_decay = _log_decay_grad(segment, d_mixing, d_x, d_keys, d_carried)
        d_x.unflatten(1, (-1, size)).mul_(segment.decays.since_start.unsqueeze(1))
        d_keys.mul_(segment.decays.until_end)
    mask_(d_mixing, segment.decays)
    d_x.baddbmm_(d_mixing, keys)
    d_keys.baddbmm_(d_mixing.transpose(1, 2), segment.rows)
    d_writes, d_written_keys = d_rows[:, :size], d_x[:, :size]
    d_beta = torch.linalg.vecdot(d_written_keys, keys) - torch.linalg.vecdot(d_writes, segment.values)
    d_keys.addcmul_(d_written_keys, segment.beta)
    d_values = d_writes.mul_(segment.beta).neg_()
    return SegmentGrads(d_x[:, size:], d_keys, d_values, d_beta, d_log_decay, d_states[0])


def _reverse_scan(segment, d_rows, d_state):
    """Fill the first C rows of d_rows with -E. Returns the states' gradients [n + 1, B*H, K, V]."""
    heads, size, chunks = len(d_state), segment.keys.shape[1], len(segment.keys) // len(d_state)
    rows, inverse = segment.rows_decayed.transpose(1, 2), segment.inverse.transpose(1, 2)
    d_updates = torch.bmm(segment.mixing[:, size:].transpose(1, 2), d_rows[:, size:])
    d_states = d_state.new_empty(chunks + 1, *d_state.shape)
    d_states[chunks] = d_state
    carried = segment.decays and segment.decays.carried
    for i in reversed(range(chunks)):
        now = slice(i * heads, (i + 1) * heads)
        d_updates[now].baddbmm_(segment.keys_decayed[now], d_states[i + 1])
        torch.neg(torch.bmm(inverse[now], d_updates[now]), out=d_rows[now, :size])
        carry(d_states[i + 1], carried, now, rows, d_rows, out=d_states[i])
    return d_states


def _log_decay_grad(segment, d_mixing, d_rows_decayed, d_keys_decayed, d_carried):
    """[N, C]. A token's decay scales what passes it: from a writer before it (or the chunk's start) to a reader at or
    after it (or the chunk's end). Summed as such: the usual difference of row and column sums cancels, and after
    strong decays nothing but its rounding would be left.
    """
    size = segment.keys.shape[1]
    passing = _sum_groups(d_mixing * segment.mixing, size)  # [N, reader, writer]
    from_start = _sum_groups(torch.linalg.vecdot(d_rows_decayed, segment.rows_decayed), size)  # [N, reader]
    to_end = torch.linalg.vecdot(d_keys_decayed, segment.keys_decayed)  # [N, writer]
    writer_before = passing.new_ones(size, size).triu_(1)  # [writer, token]
    reader_since = passing.new_ones(size, size).tril_()  # [reader, token]
    passing = (passing @ writer_before).add_(from_start.unsqueeze(2)).mul_(reader_since).sum(1)
    carried = segment.decays.carried.flatten(1) * d_carried.unsqueeze(1)
    return passing + to_end @ writer_before + carried


def _sum_groups(x, size):
    """[N, R, ...] -> [N, C, ...]: the sum over the rows of one token."""
    return x.unflatten(1, (-1, size)).sum(1)
