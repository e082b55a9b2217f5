"""Backward of one segment: the adjoint of `segment.scan`, chunk by chunk from the last to the first.

With E = T^T du and Z = [-E; do] (rows as in X), per chunk (derivation in README.md):
    du = P^T do + k^ dS'      d[A; P] = D . (Z u^T)      dX~ = Z S^T      dk^ = u dS'^T      dS = gamma dS' + X~^T Z
Without the delta rule Z = do and E = du.
Legend: N = n * B * H chunks, chunk-major; W positions and R rows of a chunk (see plan.py).
"""

from typing import NamedTuple

import torch

from .channels import decay_channels
from .segment import carry, mask_, scan_states


class SegmentGrads(NamedTuple):
    """Gradients of one segment's inputs and of the state it started from."""

    queries: torch.Tensor  # [N, G * C, K], of scale * q
    keys: torch.Tensor  # [N, W, K]
    values: torch.Tensor  # [N, W, V]
    beta: torch.Tensor | None  # [N, W]
    log_decay: torch.Tensor | None  # [N, W] or [N, W, K]
    state: torch.Tensor  # [B*H, K, V]


def backward(segment, state, d_rows, d_state):
    """Gradients of `scan(segment, state)`.

    Args: state [B*H, K, V] the segment started from; d_rows [N, R, V] with the output's gradient in the rows of queries
    (those of keys are scratch space, overwritten); d_state [B*H, K, V] gradient of the state after the segment.
    """
    plan, keys = segment.plan, segment.keys
    states, updates = scan_states(segment, state)
    d_states, d_updates = _reverse_scan(segment, d_rows, d_state)
    before, d_after = states[:-1].flatten(0, 1), d_states[1:].flatten(0, 1)
    d_mixing = torch.bmm(d_rows, updates.transpose(1, 2))
    d_x = torch.bmm(d_rows, before.transpose(1, 2))
    d_keys = torch.bmm(updates, d_after.transpose(1, 2))
    d_log_decay = None
    if segment.carried is not None and segment.decays is None:
        d_x, d_keys, d_log_decay = _through_channels(segment, d_x, d_keys, d_mixing, before, d_after)
    else:
        if segment.decays is not None:
            d_carried = torch.linalg.vecdot(before.flatten(1), d_after.flatten(1))
            d_log_decay = _log_decay_grad(segment, d_mixing, d_x, d_keys, d_carried)
            plan.times_(d_x, segment.decays.since_start)
            d_keys.mul_(segment.decays.until_end)
        mask_(plan, d_mixing, segment.decays)
        d_x.baddbmm_(d_mixing, keys)
        d_keys.baddbmm_(d_mixing.transpose(1, 2), segment.rows)
    d_writes, d_beta = d_updates, None
    if plan.delta:
        d_writes = d_rows[:, : plan.keys].neg_()
        d_keys.addcmul_(d_x[:, : plan.keys], segment.beta)
    if segment.beta is not None:
        d_beta = torch.linalg.vecdot(d_writes, segment.values)
        if plan.delta:
            d_beta += torch.linalg.vecdot(d_x[:, : plan.keys], keys)
        d_writes = d_writes.mul_(segment.beta)
    return SegmentGrads(d_x[:, plan.keys :], d_keys, d_writes, d_beta, d_log_decay, d_states[0])


def _reverse_scan(segment, d_rows, d_state):
    """Fill the rows of keys in d_rows with -E. Returns the states' gradients [n + 1, B*H, K, V], and du [N, W, V]."""
    heads, size, chunks = len(d_state), segment.plan.keys, len(segment.keys) // len(d_state)
    rows = segment.rows_decayed.transpose(1, 2)
    d_updates = torch.bmm(segment.mixing[:, size:].transpose(1, 2), d_rows[:, size:])
    d_states = d_state.new_empty(chunks + 1, *d_state.shape)
    d_states[chunks] = d_state
    for i in reversed(range(chunks)):
        now = slice(i * heads, (i + 1) * heads)
        d_updates[now].baddbmm_(segment.keys_decayed[now], d_states[i + 1])
        if size:
            torch.neg(torch.bmm(segment.inverse[now].transpose(1, 2), d_updates[now]), out=d_rows[now, :size])
        carry(d_states[i + 1], segment.carried, now, rows, d_rows, out=d_states[i])
    return d_states, d_updates


def _through_channels(segment, d_rows_decayed, d_keys_decayed, d_mixing, before, d_after):
    """Gradients of X, k and the log decays through `decay_channels`."""
    inputs = [x.detach().requires_grad_() for x in (segment.rows, segment.keys, segment.log_decay)]
    with torch.enable_grad():
        outputs = decay_channels(segment.plan, *inputs)
    d_carried = (before * d_after).sum(2, keepdim=True)
    return torch.autograd.grad(outputs, inputs, (d_rows_decayed, d_keys_decayed, d_mixing, d_carried))


def _log_decay_grad(segment, d_mixing, d_rows_decayed, d_keys_decayed, d_carried):
    """[N, W]. A position's decay scales what passes it: from a writer before it (or the chunk's start) to a reader at
    or after it (or the chunk's end). Summed as such: the usual difference of row and column sums cancels, and after
    strong decays nothing but its rounding would be left.
    """
    plan, size = segment.plan, segment.plan.positions
    passing = plan.by_position(d_mixing * segment.mixing)  # [N, reader, writer]
    from_start = plan.by_position(torch.linalg.vecdot(d_rows_decayed, segment.rows_decayed))  # [N, reader]
    to_end = torch.linalg.vecdot(d_keys_decayed, segment.keys_decayed)  # [N, writer]
    writer_before = passing.new_ones(size, size).triu_(1)  # [writer, position]
    reader_since = passing.new_ones(size, size).tril_()  # [reader, position]
    passing = (passing @ writer_before).add_(from_start.unsqueeze(2)).mul_(reader_since).sum(1)
    carried = segment.decays.carried.flatten(1) * d_carried.unsqueeze(1)
    return passing + to_end @ writer_before + carried
