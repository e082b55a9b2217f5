"""Chunkwise (gated) delta rule in PyTorch with its own backward: O(T) time, O(T * (K + V)) memory.

The forward saves the inputs and one state per segment; the backward recomputes one segment at a time.
"""

import torch
from torch.autograd.function import once_differentiable

from .dtypes import state_dtype
from .layout import gather, gather_grouped, scatter, scatter_grouped
from .segment import prepare, scan
from .segment_backward import backward

SEGMENT_TOKENS = 2048
"""Tokens times heads worked on at once: large enough for the matrix products, small enough to stay in cache."""


@torch.compiler.disable  # the loops and copies below gain nothing from a compiler (measured 10 % slower)
def chunk_delta_rule(q, k, v, beta, g, *, scale, initial_state, chunk_size=None):
    """(Gated) delta rule, chunkwise (arXiv 2406.06484 sec. 3, 2412.06464 sec. 3.3; derivation in README.md).

    Args: q [B, T, G*H, K], k [B, T, H, K], v [B, T, H, V], beta [B, T, H], g [B, T, H] or None (natural log
    of the decay, <= 0), initial_state [B, H, K, V] or None, chunk_size a power of two or None for the default
    for these widths. Arguments are taken as valid: see `delta_rule`.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32 (float64 for float64 inputs).
    Raises: RuntimeError when differentiated twice.
    """
    dtype = state_dtype(q, k, v)
    size = chunk_size or default_chunk_size(k.shape[-1])
    size = min(size, 1 << max(3, (k.shape[1] - 1).bit_length()))
    if initial_state is None:
        initial_state = k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3], dtype=dtype)
    return _ChunkDeltaRule.apply(q, k, v, beta, g, initial_state.to(dtype), scale, size)


def default_chunk_size(key_width):
    """The fastest of those tried by hand: below 16 the products are too small, above it the triangles cost too much."""
    return 32 if key_width <= 128 else 64


class _ChunkDeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, beta, g, initial_state, scale, size):
        starts = _segment_starts(k, size)
        saved = initial_state.new_empty(len(starts), *initial_state.shape)
        o = torch.empty(*q.shape[:3], v.shape[3], dtype=v.dtype, device=v.device)
        state = initial_state.flatten(0, 1)
        for s, (start, chunks) in enumerate(starts):
            saved[s] = state.unflatten(0, saved.shape[1:3])
            segment = _load(q, k, v, beta, g, scale, start, chunks, size, state.dtype)
            states, _, out = scan(segment, state)
            scatter_grouped(o, start, _by_head(out, k, chunks, size))
            state = states[chunks]
        ctx.save_for_backward(q, k, v, beta, g, saved)
        ctx.scale, ctx.size = scale, size
        return o, state.unflatten(0, saved.shape[1:3]).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final_state):
        *inputs, saved = ctx.saved_tensors
        k, size = inputs[1], ctx.size
        grads = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
        d_state = d_final_state.flatten(0, 1)
        with torch.autocast(k.device.type, enabled=False):
            for s, (start, chunks) in reversed(list(enumerate(_segment_starts(k, size)))):
                segment = _load(*inputs, ctx.scale, start, chunks, size, saved.dtype)
                d_rows = _load_grouped(d_o, k, start, chunks, size, saved.dtype)
                step = backward(segment, saved[s].flatten(0, 1), d_rows, d_state)
                d_state = step.state
                scatter_grouped(grads[0], start, _by_head(step.queries.mul_(ctx.scale), k, chunks, size))
                for out, grad in zip(grads[1:], step[1:5], strict=True):
                    if out is not None:
                        scatter(out, start, grad.unflatten(0, (chunks, k.shape[0], k.shape[2])))
        return (*grads, d_state.view_as(saved[0]), None, None)


def _segment_starts(k, size):
    """[(first token, number of chunks)] of every segment."""
    batch, tokens, heads, key_width = k.shape
    total = -(-tokens // size)
    # Not below K tokens, or the saved states [K, V] would take more memory than the values.
    each = max(1, max(SEGMENT_TOKENS // (batch * heads), key_width) // size)
    return [(first * size, min(each, total - first)) for first in range(0, total, each)]


def _load(q, k, v, beta, g, scale, start, chunks, size, dtype):
    keys, values, betas = (gather(x, start, chunks, size, dtype).flatten(0, 2) for x in (k, v, beta))
    rows = _load_grouped(q, k, start, chunks, size, dtype)
    rows[:, size:].mul_(scale)
    log_decay = None if g is None else gather(g, start, chunks, size, dtype).flatten(0, 2)
    return prepare(keys, values, betas.unsqueeze(2), rows, log_decay)


def _load_grouped(x, k, start, chunks, size, dtype):
    """[B, T, G*H, D] -> [N, (1 + G) * C, D], the first C rows left empty."""
    batch, _, heads, _ = k.shape
    groups = x.shape[2] // heads
    rows = torch.empty(chunks, batch, heads, 1 + groups, size, x.shape[3], dtype=dtype, device=x.device)
    gather_grouped(x, rows[:, :, :, 1:], start)
    return rows.flatten(0, 2).flatten(1, 2)


def _by_head(x, k, chunks, size):
    """[N, G * C, D] -> [n, B, H, G, C, D]."""
    return x.unflatten(1, (-1, size)).unflatten(0, (chunks, k.shape[0], k.shape[2]))
