"""The kernels as operators of torch.library: with shapes for tracing (torch.compile) and gradients.

Legend: as in recurrences.py. k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H], all three perhaps without N; q, k, v of
one dtype, float32 or bfloat16; beta, g and states float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from tptt.ops.chunk import KEPT_BYTES
from tptt.ops.native import structs

from .library import library

POSITIONS, POSITIONS_ALONE = 32, 16
"""Positions of a chunk, about, and those of a forward without a backward, of more than one chunk and one write per token: it gains
more by smaller triangles (4 to 9 %) than it loses by walking over the state more often. Where there are tiles they must be full."""
SEGMENT_CHUNKS = 8
WIDE_KEYS = 512
"""From this width on rows of keys are padded in another way, and states too large to be kept for every chunk."""


def _writes(k):
    """N."""
    return k.shape[2] if k.dim() == 5 else 1


def _sizes(k, v, keep):
    """chunk in tokens (a multiple of 4), segment in chunks; ``keep``: there will be, or is, a backward."""
    tokens, writes, least = k.shape[1], _writes(k), min(k.shape[-1], v.shape[-1])
    alone = not keep and writes == 1 and tokens > POSITIONS
    positions = max(POSITIONS_ALONE, _padding(k.dtype)) if alone else POSITIONS
    chunk = min(max(4, positions // writes // 4 * 4), -(-tokens // 4) * 4)
    # so that a saved state costs at most a third of its keys or of its values
    return chunk, max(SEGMENT_CHUNKS, -(-3 * least // chunk))


def _saved_shape(q, k, v):
    """Of what a forward leaves for the backward: all it needs of every chunk where that is little, else the states before
    each segment."""
    (batch, tokens), (heads, key_width), value_width = k.shape[:2], k.shape[-2:], v.shape[-1]
    chunk, segment = _sizes(k, v, True)
    chunks = -(-tokens // chunk)
    if key_width < WIDE_KEYS:
        floats = _floats_of_a_chunk(
            key_width, value_width, chunk * _writes(k), chunk * (q.shape[2] // heads), _padding(q.dtype)
        )
        if 4 * batch * heads * chunks * floats <= KEPT_BYTES:
            return batch, heads, chunks, floats
    return batch, heads, -(-chunks // segment), key_width, value_width


def _floats_of_a_chunk(keys, values, positions, queries, padding):
    """Kept::floats in kernels/forward.h."""
    keys, values, positions, queries = (-(-width // padding) * padding for width in (keys, values, positions, queries))
    return keys * values + (positions + queries) * positions + positions * values


def _padding(dtype):
    """PADDING of the kernels that serve it."""
    instructions = library().instructions
    if instructions == "amx":
        return 32 if dtype == torch.bfloat16 else 16
    return {"portable": 4, "avx2": 8, "avx512": 16}[instructions]


def _problem(q, k, v, beta, g, scale, delta, saved=None, **pointers):
    (batch, tokens), (heads, key_width) = k.shape[:2], k.shape[-2:]
    chunk, segment = _sizes(k, v, saved is not None)
    kept = saved.shape[3] if saved is not None and saved.dim() == 4 else 0
    return structs.Problem(
        batch, tokens, _writes(k), heads, q.shape[2] // heads, key_width, v.shape[-1], chunk, segment, kept,
        torch.get_num_threads(), scale, delta, q.dtype == torch.bfloat16,
        q=structs.Tensor.without_writes(q), k=_written(k, k), v=_written(v, k), beta=_written(beta, k),
        g=structs.Tensor.without_writes(g), saved=_pointer(saved), **pointers,
    )  # fmt: skip


def _written(x, k):
    """x, which has an axis of writes if k has one."""
    return structs.Tensor.of(x) if k.dim() == 5 else structs.Tensor.without_writes(x)


def _rows(x):
    """x, or a copy whose last axis is contiguous."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _pointer(x):
    return None if x is None else x.data_ptr()


def _outputs(q, k, v, beta, g, initial_state, scale, delta, keep, final):
    (batch, tokens), (heads, key_width), value_width = k.shape[:2], k.shape[-2:], v.shape[-1]
    return (
        v.new_empty(batch, tokens, q.shape[2], value_width),
        v.new_empty((batch, heads, key_width, value_width) if final else 0, dtype=torch.float32),
        v.new_empty(_saved_shape(q, k, v) if keep else 0, dtype=torch.float32),
    )


def forward_kernel(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, g: Tensor | None, initial_state: Tensor | None,
    scale: float, delta: bool, keep: bool, final: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """o [B, T, G*H, V], the final state [B, H, K, V] (empty unless ``final``), and what the backward needs (empty unless
    ``keep``)."""
    o, state, saved = _outputs(q, k, v, beta, g, initial_state, scale, delta, keep, final)
    q, k, v = map(_rows, (q, k, v))
    start = None if initial_state is None else initial_state.contiguous()
    problem = _problem(
        q, k, v, beta, g, scale, delta, o=structs.Tensor.without_writes(o), initial_state=_pointer(start),
        final_state=_pointer(state if final else None), saved=saved if keep else None,
    )  # fmt: skip
    library().forward(problem)
    return o, state, saved


def _gradients(q, k, v, beta, g, saved, d_o, d_final_state, scale, delta, started):
    heads, key_width = k.shape[-2:]
    return (
        *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)),
        *(v.new_empty(0 if x is None else x.shape, dtype=torch.float32) for x in (beta, g)),
        v.new_empty((len(k), heads, key_width, v.shape[-1]) if started else 0, dtype=torch.float32),
    )


def backward_kernel(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, g: Tensor | None, saved: Tensor, d_o: Tensor,
    d_final_state: Tensor | None, scale: float, delta: bool, started: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, beta, g and the initial state; empty are those of an absent beta or g, and of the state where
    none was given, not ``started``."""
    grads = _gradients(q, k, v, beta, g, saved, d_o, d_final_state, scale, delta, started)
    q, k, v, d_o = map(_rows, (q, k, v, d_o))
    d_final_state = None if d_final_state is None else d_final_state.contiguous()
    d_q, d_k, d_v, d_beta, d_g, d_state = grads
    problem = _problem(
        q, k, v, beta, g, scale, delta, saved=saved, d_o=structs.Tensor.without_writes(d_o),
        d_q=structs.Tensor.without_writes(d_q), d_k=_written(d_k, k), d_v=_written(d_v, k),
        d_beta=_written(None if beta is None else d_beta, k),
        d_g=structs.Tensor.without_writes(None if g is None else d_g), d_final_state=_pointer(d_final_state),
        d_initial_state=_pointer(d_state if started else None),
    )  # fmt: skip
    library().backward(problem)
    return grads


recurrence = torch.library.custom_op("tptt::recurrence", forward_kernel, mutates_args=(), device_types="cpu")
recurrence.register_fake(_outputs)
recurrence_backward = torch.library.custom_op(
    "tptt::recurrence_backward", backward_kernel, mutates_args=(), device_types="cpu"
)
recurrence_backward.register_fake(_gradients)


def _keep(ctx, inputs, output):
    q, k, v, beta, g, initial_state, scale, delta, _, final = inputs
    ctx.save_for_backward(q, k, v, beta, g, output[2])
    ctx.scale, ctx.delta, ctx.started, ctx.final = scale, delta, initial_state is not None, final


def _keep_traced(ctx, inputs, output):
    _keep(ctx, inputs, output)
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx, d_o, d_final_state, _=None, run=recurrence_backward):
    q, k, v, beta, g, saved = ctx.saved_tensors
    d_final_state = d_final_state if ctx.final else None
    grads = run(q, k, v, beta, g, saved, d_o, d_final_state, ctx.scale, ctx.delta, ctx.started)
    d_q, d_k, d_v, d_beta, d_g, d_state = grads
    d_beta, d_g = None if beta is None else d_beta, None if g is None else d_g
    return d_q, d_k, d_v, d_beta, d_g, d_state if ctx.started else None, None, None, None, None


recurrence.register_autograd(_differentiate, setup_context=_keep_traced)


class Recurrence(torch.autograd.Function):
    """`recurrence` where nothing traces: an operator's dispatch, there and back, takes as long as a hundred tokens."""

    @staticmethod
    def forward(ctx, q, k, v, beta, g, initial_state, scale, delta, final):
        inputs = q, k, v, beta, g, initial_state, scale, delta, True, final
        output = forward_kernel(*inputs)
        ctx.set_materialize_grads(False)
        _keep(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final_state):
        if d_o is None:  # only the state was used
            q, _, v = ctx.saved_tensors[:3]
            d_o = v.new_zeros(*q.shape[:3], v.shape[-1])
        return _differentiate(ctx, d_o, d_final_state, run=backward_kernel)[:9]


def plain_step(q, k, v, beta, g, state, scale, delta, sizes):
    """One token of contiguous tensors, beta, g and state float32: o [B, 1, G*H, V]; ``state`` is overwritten. ``sizes``:
    B, N, H, G, K, V. Of a small state the kernel takes 10 us, so that nothing is asked here that a caller knows."""
    batch, _, heads, groups, _, value_width = sizes
    o = v.new_empty((batch, 1, heads * groups, value_width))
    library().step(
        structs.Step(
            *sizes, torch.get_num_threads(), scale, delta, v.dtype == torch.bfloat16, q.data_ptr(), k.data_ptr(),
            v.data_ptr(), None if beta is None else beta.data_ptr(), None if g is None else g.data_ptr(),
            state.data_ptr(), o.data_ptr(),
        )
    )  # fmt: skip
    if not state.is_inference():
        increment_version(state)  # autograd may have kept it
    return o


def step_kernel(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, g: Tensor | None, state: Tensor, scale: float, delta: bool
) -> Tensor:
    """One token, T = 1: o [B, 1, G*H, V]; ``state`` [B, H, K, V] is overwritten."""
    batch, heads, key_width, value_width = state.shape
    writes, queries = _writes(k), q.shape[2]
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    beta, g = (x if x is None else x.contiguous() for x in (beta, g))
    sizes = batch, writes, heads, queries // heads, key_width, value_width
    return plain_step(q, k, v, beta, g, state, scale, delta, sizes)


recurrence_step = torch.library.custom_op(
    "tptt::recurrence_step", step_kernel, mutates_args=("state",), device_types="cpu"
)


@recurrence_step.register_fake
def _step_output(q, k, v, *arguments):
    return v.new_empty(v.shape[0], 1, q.shape[2], v.shape[-1])
