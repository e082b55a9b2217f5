"""The recurrences chunkwise in PyTorch with their own backward: O(T) time, O(T * (K + V)) memory.

The forward saves the inputs and one state per segment; the backward recomputes one segment at a time. Of few tokens the forward
keeps the segments themselves.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .dtypes import state_dtype, without_autocast
from .layout import gather, gather_grouped, scatter, scatter_grouped
from .plan import Plan
from .segment import in_cache, prepare, read, run, scan
from .segment_backward import backward

SEGMENT_NUMBERS = 1 << 19
"""Numbers of keys, or of values, worked on at once: enough for the matrix products, little enough to stay in a cache. Half of
them where each channel decays by itself, with eight times as many in between."""
DEVICE_POSITIONS = 65536
"""The same on an accelerator, in positions times heads: launches count there and no cache, and it was 2 to 5 times as fast as
4,096 of them."""
KEPT_BYTES = 16 << 20
"""What a call may keep for its backward, so that it computes nothing a second time: a quarter faster on 128 to 512 tokens of 16
heads of 64; of more it takes longer to fetch than to compute."""
LEAST_DECAY = -1e4
"""In its place stands a log decay below it: minus infinity is a decay like any other that leaves nothing."""


@torch.compiler.disable  # the loops and copies below gain nothing from a compiler (measured 10 % slower)
def chunk_recurrence(q, k, v, beta, g, *, scale, initial_state, delta, chunk_size=None, needs_grad=True):
    """`naive_recurrence`, chunkwise (arXiv 2406.06484 sec. 3, 2412.06464 sec. 3.3; derivation in README.md).

    Args: q [B, T, G*H, K], k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H] or None, g [B, T, H], [B, T, H, K] or
    None (natural log of the decay, <= 0), initial_state [B, H, K, V] or None, chunk_size a power of two (tokens) or
    None for the default for these widths, needs_grad: False where nothing will be differentiated. Arguments are taken as valid.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32 (float64 for float64 inputs).
    Raises: RuntimeError when differentiated twice.
    """
    dtype = state_dtype(q, k, v)
    batch, tokens, steps, heads, key_width = k.shape
    size = chunk_size or default_chunk_size(key_width, steps, k.device.type)
    size = min(size, 1 << max(3, (tokens - 1).bit_length()))
    plan = Plan(size, steps, q.shape[2] // heads, delta)
    if initial_state is None:
        initial_state = k.new_zeros(batch, heads, key_width, v.shape[4], dtype=dtype)
    writes = [x if x is None else x.flatten(1, 2) for x in (k, v, beta)]
    return _Chunks.apply(q, *writes, g, initial_state.to(dtype), scale, plan, needs_grad)


def default_chunk_size(key_width, steps=1, device="cpu"):
    """The fastest of those tried by hand: below 16 the products are too small, above it the triangles cost too much.
    Where arithmetic costs less than the steps from chunk to chunk, larger."""
    positions = 128 if device != "cpu" else 32 if key_width <= 128 else 64
    return 1 << max(1, positions // steps).bit_length() - 1


class _Chunks(torch.autograd.Function):
    """On positions: k [B, T * N, H, K], v [B, T * N, H, V] and beta [B, T * N, H] have N for each token of q and g."""

    @staticmethod
    def forward(ctx, q, k, v, beta, g, initial_state, scale, plan, needs_grad):
        inputs, spans = (q, k, v, beta, g), _spans(k, v, g, plan)
        saved = initial_state.new_empty(len(spans) if needs_grad else 0, *initial_state.shape)
        o = torch.empty(*q.shape[:3], v.shape[3], dtype=v.dtype, device=v.device)
        state = initial_state.flatten(0, 1).clone()
        keep = needs_grad and _kept_numbers(k, v, plan) * state.itemsize <= KEPT_BYTES
        ctx.kept = []
        for s, span in enumerate(spans):
            if needs_grad:
                saved[s] = state.view_as(initial_state)
            state, *kept = _forward(o, inputs, span, state, scale, keep)
            if keep:
                ctx.kept.append(kept)
        ctx.save_for_backward(*inputs, saved)
        ctx.scale, ctx.plan = scale, plan
        return o, state.view_as(initial_state).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final_state):
        *inputs, saved = ctx.saved_tensors
        (_, k, v, _, g), d_state = inputs, d_final_state.flatten(0, 1).clone()
        grads = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
        with without_autocast(k.device.type):
            for s, span in reversed(list(enumerate(_spans(k, v, g, ctx.plan)))):
                _backward(grads, inputs, span, saved[s].flatten(0, 1), ctx.kept, d_o, d_state, ctx.scale)
        return (*grads, d_state.view_as(saved[0]), None, None, None)


class _Span(NamedTuple):
    """Where a segment lies."""

    start: int  # its first token
    chunks: int
    plan: Plan


def _spans(k, v, g, plan):
    """Those of all segments."""
    batch, positions, heads, key_width = k.shape
    total = -(-positions // plan.positions)
    # Not below K positions, or the saved states [K, V] would take more memory than the values.
    most = DEVICE_POSITIONS
    if k.device.type == "cpu":
        most = SEGMENT_NUMBERS // max(key_width, v.shape[3]) // (2 if g is not None and g.dim() == 4 else 1)
    each = max(1, max(most // (batch * heads), key_width) // plan.positions)
    return [_Span(first * plan.tokens, min(each, total - first), plan) for first in range(0, total, each)]


def _kept_numbers(k, v, plan):
    """How many numbers the segments of a call hold, about."""
    queries = plan.groups / plan.steps
    rows = (3 + 2 * queries) * k.shape[3] + v.shape[3] + (2 + queries) * plan.positions
    return k[..., 0].numel() * rows


def _forward(o, inputs, span, state, scale, keep):
    """Fill a segment of o. Returns the state behind it and, if they are to be kept, what `_compute` does.

    Segments are functions of their own, so that each leaves its memory to the next while it is in the caches.
    """
    segment = _load(*inputs, span, state.dtype, overwrite=not keep)
    kept = ()
    if keep or in_cache(span.chunks, state):
        states, updates = scan(segment, state)
        out, state = read(segment, states, updates, scale), states[span.chunks]
        kept = (segment, states, updates) if keep else ()
    else:
        out = run(segment, state, scale)
    scatter_grouped(o, span.start, _by_head(out, inputs[1], span.chunks, span.plan.tokens))
    return state, *kept


def _compute(inputs, span, state):
    """A segment, the states before each of its chunks and behind the last, and what they write."""
    segment = _load(*inputs, span, state.dtype)
    return segment, *scan(segment, state)


def _backward(grads, inputs, span, state, kept, d_o, d_state, scale):
    """Fill a segment of the inputs' gradients; d_state becomes that of the state before it, which is `state`."""
    k, (start, chunks, plan) = inputs[1], span
    d_out = gather_grouped(d_o, start, chunks, plan.tokens, k.shape[2], d_state.dtype).flatten(0, 2).mul_(scale)
    # kept for one backward: another one through the same graph computes them again
    step = backward(*(kept.pop() if kept else _compute(inputs, span, state)), d_out, d_state)
    scatter_grouped(grads[0], start, _by_head(step.queries, k, chunks, plan.tokens))
    each = (*step[1:4], step.log_decay if step.log_decay is None else step.log_decay[:, :: plan.steps])
    for out, grad, steps in zip(grads[1:], each, (plan.steps,) * 3 + (1,), strict=True):
        if out is not None:
            scatter(out, start * steps, grad.unflatten(0, (chunks, k.shape[0], k.shape[2])))


def _load(q, k, v, beta, g, span, dtype, overwrite=False):
    start, chunks, plan = span
    first = start * plan.steps
    keys, values, betas = (
        None if x is None else gather(x, first, chunks, plan.positions, dtype).flatten(0, 2) for x in (k, v, beta)
    )
    queries = gather_grouped(q, start, chunks, plan.tokens, k.shape[2], dtype).flatten(0, 2)
    log_decay = None
    if g is not None:
        of_tokens = gather(g, start, chunks, plan.tokens, dtype).flatten(0, 2).clamp_(min=LEAST_DECAY)
        log_decay = of_tokens
        if plan.steps > 1:  # a token decays before the first of its writes
            log_decay = keys.new_zeros(len(keys), plan.positions, *g.shape[3:])
            log_decay[:, :: plan.steps] = of_tokens
    return prepare(plan, queries, keys, values, None if betas is None else betas.unsqueeze(2), log_decay, overwrite)


def _by_head(x, k, chunks, size):
    """[N, G * C, D] -> [n, B, H, G, C, D]."""
    return x.unflatten(1, (-1, size)).unflatten(0, (chunks, k.shape[0], k.shape[2]))
