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
from .segment import across, by_chunk, decay, in_cache, mask_, times


class SegmentGrads(NamedTuple):
    """Gradients of one segment's inputs."""

    queries: torch.Tensor  # [N, G * C, K]
    keys: torch.Tensor  # [N, W, K]
    values: torch.Tensor  # [N, W, V]
    beta: torch.Tensor | None  # [N, W]
    log_decay: torch.Tensor | None  # [N, W] or [N, W, K]


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
    [B*H, K, V] gradient of the state after the segment, which becomes that of the state before it.
    """
    d_values, d_carried, *decayed = _reverse_scan(segment, states[:-1], updates, d_o, d_state)
    found = updates.transpose(1, 2)
    of_keys = _minus(torch.empty_like(segment.of_keys), d_values, found) if segment.plan.delta else None
    grads = _Gradients(*decayed, of_keys, torch.bmm(d_o, found))
    d_log_decay = None
    if segment.carried is not None and segment.decays is None:
        d_keys, d_queries, d_writes, d_log_decay = _through_channels(segment, grads, d_carried)
    else:
        if segment.decays is not None:
            d_log_decay = _through_decays_(segment, grads, d_carried)
        d_keys, d_queries, d_writes = _through_products_(segment, grads)
    d_beta = None if segment.beta is None else torch.linalg.vecdot(d_writes, segment.keys)
    if segment.beta is not None:
        d_writes = d_writes.mul_(segment.beta)
    d_keys = d_writes if d_keys is None else d_keys.add_(d_writes)
    return SegmentGrads(d_queries, d_keys, d_values, d_beta, d_log_decay)


def _reverse_scan(segment, states, updates, d_o, d_state):
    """E [N, W, V], then <S, dS'> of each channel [N, K] (None without decay), dk~ (None without the delta rule), dq~ and db^.

    Where the states' gradients would not stay in the caches together, each is read at once and the next one takes its place.
    """
    delta, chunks, in_place = segment.plan.delta, len(states), not in_cache(len(states), d_state)
    d_updates = torch.bmm(segment.of_queries.transpose(1, 2), d_o)
    d_values = torch.empty_like(d_updates) if delta else d_updates
    keys, queries, inverse, writes, gamma, d_out, d_found, solved = by_chunk(
        chunks,
        *(
            x if x is None else x.transpose(1, 2)
            for x in (segment.keys_decayed, segment.queries_decayed, segment.inverse)
        ),
        segment.writes_decayed,
        segment.carried,
        d_o,
        d_updates,
        d_values,
    )
    d_states = d_state.expand(chunks + 1, -1, -1, -1) if in_place else d_state.new_empty(chunks + 1, *d_state.shape)
    d_states[chunks] = d_state
    grads = (
        None if segment.carried is None else d_state.new_empty(len(d_values), d_state.shape[1]),
        torch.empty_like(segment.keys) if delta else None,
        torch.empty_like(segment.queries),
        torch.empty_like(segment.keys),
    )
    reading = (d_values, d_o, updates, states.flatten(0, 1))
    of_chunk = list(zip(*by_chunk(chunks, *grads, *reading), strict=True))
    *before, after = d_states.unbind()
    for i in reversed(range(chunks)):
        d_found[i].baddbmm_(writes[i], after)
        if delta:
            torch.bmm(inverse[i], d_found[i], out=solved[i])
        if in_place:
            _of_states(*of_chunk[i], after)
        after = decay(after, gamma[i], before[i]).baddbmm_(queries[i], d_out[i])
        if delta:
            after.baddbmm_(keys[i], solved[i], alpha=-1)
    if not in_place:
        _of_states(*grads, *reading, d_states[1:].flatten(0, 1))
        d_state.copy_(after)
    return d_values, *grads


def _of_states(d_carried, d_keys, d_queries, d_writes, d_values, d_o, updates, before, after):
    """Fill the first four, or those that are not None, from states [., K, V] before chunks and the gradients of those after."""
    if d_carried is not None:
        torch.sum(before * after, 2, out=d_carried)
    before = before.transpose(1, 2)
    if d_keys is not None:
        _minus(d_keys, d_values, before)
    torch.bmm(d_o, before, out=d_queries)
    torch.bmm(updates, after.transpose(1, 2), out=d_writes)


def _minus(out, left, right):
    """out = -(left right)."""
    return out.baddbmm_(left, right, beta=0, alpha=-1)


def _through_channels(segment, grads, d_carried):
    """Gradients of k, q, b and the log decays through `decay_channels`."""
    plan = segment.plan
    writes = times(segment.keys, segment.beta)
    inputs = [segment.keys if plan.delta else None, segment.queries, writes, segment.log_decay]
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = decay_channels(plan, *inputs)
    d_outputs = (*grads[:3], d_carried.unsqueeze(2), *grads[3:])
    outputs, inputs, d_outputs = ([x for x in some if x is not None] for some in (outputs, inputs, d_outputs))
    found = torch.autograd.grad(outputs, inputs, d_outputs)
    return found if plan.delta else (None, *found)


def _through_decays_(segment, grads, d_carried):
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
    carried = decays.carried.flatten(1) * d_carried.sum(1, keepdim=True)
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
