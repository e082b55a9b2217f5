"""Backward of one chunk group, from its last chunk to its first: the adjoint of `chunk_group.scan` and `read`.

With do' = scale do, per chunk (derivation in README.md):
    dw = P^T do' + b^ dS'      E = (I + A)^-T dw = dv      dA = -D . (E w^T)      dP = D . (do' w^T)
    dk~ = -E S^T      dq~ = do' S^T      db^ = w dS'^T      dS = gamma dS' + q~^T do' - k~^T E
Without the delta rule E = dw, and there is neither dA nor dk~.
Legend: M = n * B * H chunks, chunk-major; W positions of a chunk, G * C rows of queries (see chunk_shape.py).
"""

from typing import NamedTuple

import torch

from .channels import decay_channels
from .chunk_group import across, by_chunk, decay, in_cache, mask_, times


class ChunkGroupGrads(NamedTuple):
    """Gradients of the inputs of one chunk group."""

    queries: torch.Tensor  # [M, G * C, K]
    keys: torch.Tensor  # [M, W, K]
    values: torch.Tensor  # [M, W, V]
    beta: torch.Tensor | None  # [M, W]
    log_decay: torch.Tensor | None  # [M, W] or [M, W, K]


class _Gradients(NamedTuple):
    """Gradients of what the decays act on: of the decayed tensors at first, later of the undecayed ones. Fields that
    only the delta rule has are None without it."""

    keys: torch.Tensor | None  # [M, W, K]
    queries: torch.Tensor  # [M, G * C, K]
    writers: torch.Tensor  # [M, W, K]
    of_keys: torch.Tensor | None  # [M, W, W]
    of_queries: torch.Tensor  # [M, G * C, W]


def backward(group, states, updates, d_o, d_state):
    """Gradients of the inputs of one chunk group.

    Args: states and updates as `scan` returned them; d_o [M, G * C, V] gradient of the output, times scale; d_state
    [B*H, K, V] gradient of the state after the group, which becomes that of the state before it.
    """
    d_values, d_carried, *decayed = _reverse_scan(group, states[:-1], updates, d_o, d_state)
    found = updates.transpose(1, 2)
    of_keys = _minus(torch.empty_like(group.of_keys), d_values, found) if group.shape.delta else None
    grads = _Gradients(*decayed, of_keys, torch.bmm(d_o, found))
    d_log_decay = None
    if group.carried is not None and group.decays is None:
        d_keys, d_queries, d_writers, d_log_decay = _through_channels(group, grads, d_carried)
    else:
        if group.decays is not None:
            d_log_decay = _through_decays_(group, grads, d_carried)
        d_keys, d_queries, d_writers = _through_products_(group, grads)
    d_beta = None if group.beta is None else torch.linalg.vecdot(d_writers, group.keys)
    if group.beta is not None:
        d_writers = d_writers.mul_(group.beta)
    d_keys = d_writers if d_keys is None else d_keys.add_(d_writers)
    return ChunkGroupGrads(d_queries, d_keys, d_values, d_beta, d_log_decay)


def _reverse_scan(group, states, updates, d_o, d_state):
    """E [M, W, V], then <S, dS'> of each channel [M, K] (None without decay), dk~ (None without the delta rule), dq~
    and db^.

    Where the gradients of the states would not stay in the caches together, each is read at once and the next takes its
    place.
    """
    delta, chunks, in_place = group.shape.delta, len(states), not in_cache(len(states), d_state)
    d_updates = torch.bmm(group.of_queries.transpose(1, 2), d_o)
    d_values = torch.empty_like(d_updates) if delta else d_updates
    keys, queries, inverse, writers, gamma, d_out, d_found, solved = by_chunk(
        chunks,
        *(x if x is None else x.transpose(1, 2) for x in (group.keys_decayed, group.queries_decayed, group.inverse)),
        group.writers_decayed,
        group.carried,
        d_o,
        d_updates,
        d_values,
    )
    d_states = d_state.expand(chunks + 1, -1, -1, -1) if in_place else d_state.new_empty(chunks + 1, *d_state.shape)
    d_states[chunks] = d_state
    grads = (
        None if group.carried is None else d_state.new_empty(len(d_values), d_state.shape[1]),
        torch.empty_like(group.keys) if delta else None,
        torch.empty_like(group.queries),
        torch.empty_like(group.keys),
    )
    reading = (d_values, d_o, updates, states.flatten(0, 1))
    of_chunk = list(zip(*by_chunk(chunks, *grads, *reading), strict=True))
    *before, after = d_states.unbind()
    for i in reversed(range(chunks)):
        d_found[i].baddbmm_(writers[i], after)
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


def _of_states(d_carried, d_keys, d_queries, d_writers, d_values, d_o, updates, before, after):
    """Fill the first four, or those that are not None, from the states [., K, V] before chunks and the gradients of
    those after."""
    if d_carried is not None:
        torch.sum(before * after, 2, out=d_carried)
    before = before.transpose(1, 2)
    if d_keys is not None:
        _minus(d_keys, d_values, before)
    torch.bmm(d_o, before, out=d_queries)
    torch.bmm(updates, after.transpose(1, 2), out=d_writers)


def _minus(out, left, right):
    """out = -(left right)."""
    return out.baddbmm_(left, right, beta=0, alpha=-1)


def _through_channels(group, grads, d_carried):
    """Gradients of k, q, b and the log decays through `decay_channels`."""
    shape = group.shape
    writers = times(group.keys, group.beta)
    inputs = [group.keys if shape.delta else None, group.queries, writers, group.log_decay]
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = decay_channels(shape, *inputs)
    d_outputs = (*grads[:3], d_carried.unsqueeze(2), *grads[3:])
    outputs, inputs, d_outputs = ([x for x in some if x is not None] for some in (outputs, inputs, d_outputs))
    found = torch.autograd.grad(outputs, inputs, d_outputs)
    return found if shape.delta else (None, *found)


def _through_decays_(group, grads, d_carried):
    """Gradient of the log decays [M, W]; those of k~, q~ and b^ become those of k, q and b.

    The decay of a position scales what passes it: from a writer before it (or the start of the chunk) to a reader at or
    after it (or the end of the chunk). Those pairs are summed. The usual difference of row and column sums would
    cancel, and after strong decays only its rounding would be left.
    """
    shape, decays = group.shape, group.decays
    size, dot = shape.positions, torch.linalg.vecdot
    passing = torch.zeros_like(decays.between)
    from_start = decays.since_start.new_zeros(passing.shape[:2])
    if shape.delta:
        torch.mul(grads.of_keys, group.of_keys, out=passing)
        passing.diagonal(0, 1, 2).zero_()
        dot(grads.keys, group.keys_decayed, out=from_start)
        grads.keys.mul_(decays.since_start)
    shape.add_queries_(passing, grads.of_queries * group.of_queries)  # [M, reader, writer]
    shape.add_queries_(from_start, dot(grads.queries, group.queries_decayed))  # [M, reader]
    to_end = dot(grads.writers, group.writers_decayed)  # [M, writer]
    grads.queries.mul_(shape.at_queries(decays.since_start))
    grads.writers.mul_(decays.until_end)
    writer_before = passing.new_ones(size, size).triu_(1)  # [writer, position]
    reader_since = passing.new_ones(size, size).tril_()  # [reader, position]
    passing = (passing @ writer_before).add_(from_start.unsqueeze(2)).mul_(reader_since).sum(1)
    carried = decays.carried.flatten(1) * d_carried.sum(1, keepdim=True)
    return passing + to_end @ writer_before + carried


def _through_products_(group, grads):
    """Gradients of k, q and b from those through the states and through A and P. Overwrites `grads`."""
    shape, keys, beta = group.shape, group.keys, across(group.beta)
    d_keys, d_queries, d_writers, d_of_keys, d_of_queries = grads
    mask_(shape, d_of_keys, d_of_queries, group.decays)
    d_writers.baddbmm_(d_of_queries.transpose(1, 2), group.queries)
    d_queries.baddbmm_(times(d_of_queries, beta), keys)
    if shape.delta:
        d_of_keys.diagonal(0, 1, 2).zero_()
        d_writers.baddbmm_(d_of_keys.transpose(1, 2), keys)
        d_keys.baddbmm_(times(d_of_keys, beta), keys)
    return d_keys, d_queries, d_writers
