"""The recurrences chunkwise in PyTorch with their own backward: O(T) time, O(T * (K + V)) memory.

The forward saves the inputs and one state per chunk group; the backward recomputes one group at a time. A short call
keeps what its forward has computed instead.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .chunk_group import in_cache, prepare, read, run, scan
from .chunk_group_backward import backward
from .chunk_layout import gather, gather_grouped, scatter, scatter_grouped
from .chunk_shape import ChunkShape
from .dtypes import state_dtype, without_autocast

GROUP_NUMBERS = 1 << 19
"""Numbers of keys, or of values, in a chunk group: enough for the matrix products, few enough to stay in a cache. Half
as many with a decay per channel, which computes more numbers in between."""
DEVICE_POSITIONS = 65536
"""Positions times heads of a chunk group on an accelerator, where the number of launches counts instead of the
cache."""
KEPT_BYTES = 16 << 20
"""What a call may keep for its backward, so that it computes nothing a second time. Fetching more would take longer
than computing it again."""
LEAST_DECAY = -1e4
"""Log decays below it are taken as this one, which leaves nothing: so minus infinity makes no NaN."""


@torch.compiler.disable  # the loops and copies below gain nothing from a compiler
def chunk_recurrence(q, k, v, beta, g, *, scale, initial_state, delta, chunk_size=None, needs_grad=True):
    """`naive_recurrence`, chunkwise (arXiv 2406.06484 sec. 3, 2412.06464 sec. 3.3; derivation in README.md).

    Args: q [B, T, G*H, K], k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H] or None, g [B, T, H], [B, T, H, K]
    or None (natural log of the decay, <= 0), initial_state [B, H, K, V] or None, chunk_size a power of two (tokens) or
    None for the default for these widths, needs_grad: False where nothing will be differentiated. Arguments are taken
    as valid.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32 (float64 for float64 inputs).
    Raises: RuntimeError when differentiated twice.
    """
    dtype = state_dtype(q, k, v)
    batch, tokens, writes, heads, key_width = k.shape
    size = chunk_size or default_chunk_size(key_width, writes, k.device.type)
    size = min(size, 1 << max(3, (tokens - 1).bit_length()))
    shape = ChunkShape(size, writes, q.shape[2] // heads, delta)
    if initial_state is None:
        initial_state = k.new_zeros(batch, heads, key_width, v.shape[4], dtype=dtype)
    positions = [x if x is None else x.flatten(1, 2) for x in (k, v, beta)]
    return _Chunks.apply(q, *positions, g, initial_state.to(dtype), scale, shape, needs_grad)


def default_chunk_size(key_width, writes=1, device="cpu"):
    """Tokens of a chunk: in small chunks the matrix products are too small, in large ones the triangles cost too much.
    Larger on an accelerator, where arithmetic costs less than going from chunk to chunk."""
    positions = 128 if device != "cpu" else 32 if key_width <= 128 else 64
    return 1 << max(1, positions // writes).bit_length() - 1


class _Chunks(torch.autograd.Function):
    """k [B, T * N, H, K], v [B, T * N, H, V] and beta [B, T * N, H] have N positions for each token of q and g."""

    @staticmethod
    def forward(ctx, q, k, v, beta, g, initial_state, scale, shape, needs_grad):
        inputs, spans = (q, k, v, beta, g), _spans(k, v, g, shape)
        saved = initial_state.new_empty(len(spans) if needs_grad else 0, *initial_state.shape)
        o = torch.empty(*q.shape[:3], v.shape[3], dtype=v.dtype, device=v.device)
        state = initial_state.flatten(0, 1).clone()
        keep = needs_grad and _kept_numbers(k, v, shape) * state.itemsize <= KEPT_BYTES
        ctx.kept = []
        for s, span in enumerate(spans):
            if needs_grad:
                saved[s] = state.view_as(initial_state)
            state, *kept = _forward(o, inputs, span, state, scale, keep)
            if keep:
                ctx.kept.append(kept)
        ctx.save_for_backward(*inputs, saved)
        ctx.scale, ctx.shape = scale, shape
        return o, state.view_as(initial_state).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final_state):
        *inputs, saved = ctx.saved_tensors
        (_, k, v, _, g), d_state = inputs, d_final_state.flatten(0, 1).clone()
        grads = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
        with without_autocast(k.device.type):
            for s, span in reversed(list(enumerate(_spans(k, v, g, ctx.shape)))):
                _backward(grads, inputs, span, saved[s].flatten(0, 1), ctx.kept, d_o, d_state, ctx.scale)
        return (*grads, d_state.view_as(saved[0]), None, None, None)


class _Span(NamedTuple):
    """Where a chunk group lies."""

    start: int  # its first token
    chunks: int
    shape: ChunkShape


def _spans(k, v, g, shape):
    """The spans of all chunk groups."""
    batch, positions, heads, key_width = k.shape
    total = -(-positions // shape.positions)
    # At least K positions: otherwise the saved states [K, V] would take more memory than the values.
    most = DEVICE_POSITIONS
    if k.device.type == "cpu":
        most = GROUP_NUMBERS // max(key_width, v.shape[3]) // (2 if g is not None and g.dim() == 4 else 1)
    each = max(1, max(most // (batch * heads), key_width) // shape.positions)
    return [_Span(first * shape.tokens, min(each, total - first), shape) for first in range(0, total, each)]


def _kept_numbers(k, v, shape):
    """How many numbers the chunk groups of a call hold, about."""
    queries = shape.groups / shape.writes
    rows = (3 + 2 * queries) * k.shape[3] + v.shape[3] + (2 + queries) * shape.positions
    return k[..., 0].numel() * rows


def _forward(o, inputs, span, state, scale, keep):
    """Fill a chunk group of o. Returns the state behind it and, if `keep`, what `_compute` returns.

    Each chunk group is computed in a function call of its own, so that the next one gets its memory while it is in the
    caches.
    """
    group = _load(*inputs, span, state.dtype, overwrite=not keep)
    kept = ()
    if keep or in_cache(span.chunks, state):
        states, updates = scan(group, state)
        out, state = read(group, states, updates, scale), states[span.chunks]
        kept = (group, states, updates) if keep else ()
    else:
        out = run(group, state, scale)
    scatter_grouped(o, span.start, _by_head(out, inputs[1], span.chunks, span.shape.tokens))
    return state, *kept


def _compute(inputs, span, state):
    """A chunk group, the states before each of its chunks and behind the last, and what they write."""
    group = _load(*inputs, span, state.dtype)
    return group, *scan(group, state)


def _backward(grads, inputs, span, state, kept, d_o, d_state, scale):
    """Fill a chunk group of the inputs' gradients; d_state becomes the gradient of `state`, the state before the
    group."""
    k, (start, chunks, shape) = inputs[1], span
    d_out = gather_grouped(d_o, start, chunks, shape.tokens, k.shape[2], d_state.dtype).flatten(0, 2).mul_(scale)
    # kept for one backward: another one through the same graph computes them again
    found = backward(*(kept.pop() if kept else _compute(inputs, span, state)), d_out, d_state)
    scatter_grouped(grads[0], start, _by_head(found.queries, k, chunks, shape.tokens))
    log_decay = None if found.log_decay is None else found.log_decay[:, :: shape.writes]
    each, writes = (*found[1:4], log_decay), (shape.writes,) * 3 + (1,)
    for out, grad, per_token in zip(grads[1:], each, writes, strict=True):
        if out is not None:
            scatter(out, start * per_token, grad.unflatten(0, (chunks, k.shape[0], k.shape[2])))


def _load(q, k, v, beta, g, span, dtype, overwrite=False):
    start, chunks, shape = span
    first = start * shape.writes
    keys, values, betas = (
        None if x is None else gather(x, first, chunks, shape.positions, dtype).flatten(0, 2) for x in (k, v, beta)
    )
    queries = gather_grouped(q, start, chunks, shape.tokens, k.shape[2], dtype).flatten(0, 2)
    log_decay = None
    if g is not None:
        of_tokens = gather(g, start, chunks, shape.tokens, dtype).flatten(0, 2).clamp_(min=LEAST_DECAY)
        log_decay = of_tokens
        if shape.writes > 1:  # a token decays before the first of its writes
            log_decay = keys.new_zeros(len(keys), shape.positions, *g.shape[3:])
            log_decay[:, :: shape.writes] = of_tokens
    return prepare(shape, queries, keys, values, None if betas is None else betas.unsqueeze(2), log_decay, overwrite)


def _by_head(x, k, chunks, size):
    """[M, G * C, D] -> [n, B, H, G, C, D]."""
    return x.unflatten(1, (-1, size)).unflatten(0, (chunks, k.shape[0], k.shape[2]))
