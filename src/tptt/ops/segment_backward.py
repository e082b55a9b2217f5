"""Backward of one segment: the adjoint of `segment.scan` and `segment.read`, chunk by chunk from the last to the first.

With do' = scale do, per chunk (derivation in README.md):
    dw = P^T do' + b^ dS'      E = (I + A)^-T dw = dv      dA = -D . (E w^T)      dP = D . (do' w^T)
    dk~ = -E S^T      dq~ = do' S^T      db^ = w dS'^T      dS = gamma dS' + q~^T do' - k~^T E
Without the delta rule E = dw, and there is neither dA nor dk~.
Legend: N = n * B * H chunks, chunk-major; W positions of a chunk, G * C rows of queries (see plan.py).
"""

from typing import NamedTuple

import torch

from .channels import decay_channels
from .segment import across, by_chunk, carry, mask_, times


class SegmentGrads(NamedTuple):
    """Gradients of one segment's inputs and of the state it started from."""

    queries: torch.Tensor  # [N, G * C, K]
    keys: torch.Tensor  # [N, W, K]
    values: torch.Tensor  # [N, W, V]
    beta: torch.Tensor | None  # [N, W]
    log_decay: torch.Tensor | None  # [N, W] or [N, W, K]
    state: torch.Tensor  # [B*H, K, V]


class _Gradients(NamedTuple):
    """Of what the decays act on: first of the decayed form, then of the plain one. What only the delta rule has is None
    without it."""

    keys: torch.Tensor | None  # [N, W, K]
    queries: torch.Tensor  # [N, G * C, K]
    writes: torch.Tensor  # [N, W, K]
    of_keys: torch.Tensor | None  # [N, W, W]
    of_queries: torch.Tensor  # [N, G * C, W]


def backward(segment, states, updates, d_o, d_state):
    """Gradients of one segment's outputs.

    Args: states and updates as `scan` returned them; d_o [N, G * C, V] gradient of the output, times scale; d_state
    [B*H, K, V] gradient of the state after the segment.
    """
    d_states, d_values = _reverse_scan(segment, d_o, d_state)
    before, d_after, found = states[:-1].flatten(0, 1), d_states[1:].flatten(0, 1), updates.transpose(1, 2)
    minus = -d_values if segment.plan.delta else None
    grads = _Gradients(
        None if minus is None else torch.bmm(minus, before.transpose(1, 2)),
        torch.bmm(d_o, before.transpose(1, 2)),
        torch.bmm(updates, d_after.transpose(1, 2)),
        None if minus is None else torch.bmm(minus, found),
        torch.bmm(d_o, found),
    )
    d_log_decay = None
    if segment.carried is not None and segment.decays is None:
        d_keys, d_queries, d_writes, d_log_decay = _through_channels(segment, grads, before, d_after)
    else:
        if segment.decays is not None:
            d_log_decay = _through_decays_(segment, grads, before, d_after)
        d_keys, d_queries, d_writes = _through_products_(segment, grads)
    d_beta = None if segment.beta is None else torch.linalg.vecdot(d_writes, segment.keys)
    if segment.beta is not None:
        d_writes = d_writes.mul_(segment.beta)
    d_keys = d_writes if d_keys is None else d_keys.add_(d_writes)
    return SegmentGrads(d_queries, d_keys, d_values, d_beta, d_log_decay, d_states[0])


def _reverse_scan(segment, d_o, d_state):
    """The states' gradients [n + 1, B*H, K, V] and E [N, W, V]."""
    delta, chunks = segment.plan.delta, len(d_o) // len(d_state)
    d_updates = torch.bmm(segment.of_queries.transpose(1, 2), d_o)
    d_values = torch.empty_like(d_updates) if delta else d_updates
    d_states = d_state.new_empty(chunks + 1, *d_state.shape)
    d_states[chunks] = d_state
    turned = (
        x if x is None else x.transpose(1, 2) for x in (segment.keys_decayed, segment.queries_decayed, segment.inverse)
    )
    keys, queries, inverse, writes, gamma, d_out, d_found, solved = by_chunk(
        chunks, *turned, segment.writes_decayed, segment.carried, d_o, d_updates, d_values
    )
    *before, after = d_states.unbind()
    for i in reversed(range(chunks)):
        d_found[i].baddbmm_(writes[i], after)
        after = carry(after, gamma[i], before[i]).baddbmm_(queries[i], d_out[i])
        if delta:
            torch.bmm(inverse[i], d_found[i], out=solved[i])
            after.baddbmm_(keys[i], solved[i], alpha=-1)
    return d_states, d_values


def _through_channels(segment, grads, before, d_after):
    """Gradients of k, q, b and the log decays through `decay_channels`."""
    plan = segment.plan
    writes = times(segment.keys, segment.beta)
    inputs = [segment.keys if plan.delta else None, segment.queries, writes, segment.log_decay]
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = decay_channels(plan, *inputs)
    d_carried = (before * d_after).sum(2, keepdim=True)
    d_outputs = (*grads[:3], d_carried, *grads[3:])
    outputs, inputs, d_outputs = ([x for x in some if x is not None] for some in (outputs, inputs, d_outputs))
    found = torch.autograd.grad(outputs, inputs, d_outputs)
    return found if plan.delta else (None, *found)


def _through_decays_(segment, grads, before, d_after):
    """Gradient of the log decays [N, W]; those of k~, q~ and b^ become those of k, q and b.

    A position's decay scales what passes it: from a writer before it (or the chunk's start) to a reader at or after it (or
    the chunk's end). Summed as such: the usual difference of row and column sums cancels, and after strong decays nothing
    but its rounding would be left.
    """
    plan, decays = segment.plan, segment.decays
    size, dot = plan.positions, torch.linalg.vecdot
    passing = torch.zeros_like(decays.between)
    from_start = decays.since_start.new_zeros(passing.shape[:2])
    if plan.delta:
        torch.mul(grads.of_keys, segment.of_keys, out=passing)
        passing.diagonal(0, 1, 2).zero_()
        dot(grads.keys, segment.keys_decayed, out=from_start)
        grads.keys.mul_(decays.since_start)
    plan.add_queries_(passing, grads.of_queries * segment.of_queries)  # [N, reader, writer]
    plan.add_queries_(from_start, dot(grads.queries, segment.queries_decayed))  # [N, reader]
    to_end = dot(grads.writes, segment.writes_decayed)  # [N, writer]
    grads.queries.mul_(plan.of_queries(decays.since_start))
    grads.writes.mul_(decays.until_end)
    writer_before = passing.new_ones(size, size).triu_(1)  # [writer, position]
    reader_since = passing.new_ones(size, size).tril_()  # [reader, position]
    passing = (passing @ writer_before).add_(from_start.unsqueeze(2)).mul_(reader_since).sum(1)
    carried = decays.carried.flatten(1) * dot(before.flatten(1), d_after.flatten(1)).unsqueeze(1)
    return passing + to_end @ writer_before + carried


def _through_products_(segment, grads):
    """Gradients of k, q and b from those through the states and through A and P. Overwrites `grads`."""
    plan, keys, beta = segment.plan, segment.keys, across(segment.beta)
    d_keys, d_queries, d_writes, d_of_keys, d_of_queries = grads
    mask_(plan, d_of_keys, d_of_queries, segment.decays)
    d_writes.baddbmm_(d_of_queries.transpose(1, 2), segment.queries)
    d_queries.baddbmm_(times(d_of_queries, beta), keys)
    if plan.delta:
        d_of_keys.diagonal(0, 1, 2).zero_()
        d_writes.baddbmm_(d_of_keys.transpose(1, 2), keys)
        d_keys.baddbmm_(times(d_of_keys, beta), keys)
    return d_keys, d_queries, d_writes
