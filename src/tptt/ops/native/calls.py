"""Calls of the recurrence kernels, past torch's dispatcher.

Legend: as in call.py; q, k and v of one dtype, float32 or bfloat16; beta, g and states float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..call import Inputs
from . import structs
from .library import library
from .sizes import chunk_sizes, saved_shape, writes_of


class ForwardCall(NamedTuple):
    """What the forward kernel computes."""

    inputs: Inputs
    initial_state: Tensor | None  # [B, H, K, V]
    scale: float
    delta: bool
    keep: bool  # leave what the backward needs
    final: bool  # give the final state

    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Room for o [B, T, G*H, V], the final state (empty unless `final`), and what the backward needs (empty unless
        `keep`)."""
        q, k, v, *_ = self.inputs
        (batch, tokens), (heads, key_width), value_width = k.shape[:2], k.shape[-2:], v.shape[-1]
        return (
            v.new_empty(batch, tokens, q.shape[2], value_width),
            v.new_empty((batch, heads, key_width, value_width) if self.final else 0, dtype=torch.float32),
            v.new_empty(saved_shape(self.inputs) if self.keep else 0, dtype=torch.float32),
        )


class BackwardCall(NamedTuple):
    """What the backward kernel computes."""

    inputs: Inputs
    saved: Tensor  # third output of the forward kernel
    d_o: Tensor  # [B, T, G*H, V]
    d_final_state: Tensor | None  # [B, H, K, V]
    scale: float
    delta: bool
    started: bool  # there was an initial state

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Room for the gradients of q, k, v, beta, g and the initial state; empty for a beta, a g or a state that is
        absent."""
        q, k, v, beta, g = self.inputs
        state = (len(k), *k.shape[-2:], v.shape[-1]) if self.started else 0
        return (
            *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)),
            *(v.new_empty(0 if x is None else x.shape, dtype=torch.float32) for x in (beta, g)),
            v.new_empty(state, dtype=torch.float32),
        )


def forward_kernel(call: ForwardCall) -> tuple[Tensor, Tensor, Tensor]:
    """`ForwardCall.outputs`, computed."""
    o, state, saved = outputs = call.outputs()
    inputs = _with_rows(call.inputs)
    start = None if call.initial_state is None else call.initial_state.contiguous()
    library().forward(
        structs.PROBLEM.pack(
            *_common(inputs, call.scale, call.delta, saved if call.keep else None),
            *structs.view(o),
            structs.pointer(start),
            structs.pointer(state if call.final else None),
            structs.pointer(saved if call.keep else None),
            *structs.FORWARD_ONLY,
        )
    )
    return outputs


def backward_kernel(call: BackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`BackwardCall.gradients`, computed."""
    d_q, d_k, d_v, d_beta, d_g, d_state = gradients = call.gradients()
    inputs, d_o = _with_rows(call.inputs), _rows(call.d_o)
    d_final_state = None if call.d_final_state is None else call.d_final_state.contiguous()
    written = _view_of_written(inputs)
    library().backward(
        structs.PROBLEM.pack(
            *_common(inputs, call.scale, call.delta, call.saved),
            *structs.ABSENT,  # o
            0,  # initial_state
            0,  # final_state
            structs.pointer(call.saved),
            *structs.view(d_o),
            *structs.view(d_q),
            *written(d_k),
            *written(d_v),
            *written(None if inputs.beta is None else d_beta),
            *structs.view(None if inputs.g is None else d_g),
            structs.pointer(d_final_state),
            structs.pointer(d_state if call.started else None),
        )
    )
    return gradients


def _common(inputs, scale, delta, saved):
    """The first fields of a TpttProblem, to g."""
    q, k, v, beta, g = inputs
    (batch, tokens), (heads, key_width) = k.shape[:2], k.shape[-2:]
    written = _view_of_written(inputs)
    return (
        batch,
        tokens,
        writes_of(k),
        heads,
        q.shape[2] // heads,
        key_width,
        v.shape[-1],
        *chunk_sizes(k, v, saved is not None),
        saved.shape[3] if saved is not None and saved.dim() == 4 else 0,  # kept
        torch.get_num_threads(),
        scale,
        delta,
        q.dtype == torch.bfloat16,
        *structs.view(q),
        *written(k),
        *written(v),
        *written(beta),
        *structs.view(g),
    )


def _view_of_written(inputs):
    """The function of structs.py for what is written, which has an axis of writes if k has one."""
    return structs.view_with_writes if inputs.k.dim() == 5 else structs.view


def _with_rows(inputs):
    q, k, v, beta, g = inputs
    return Inputs(_rows(q), _rows(k), _rows(v), beta, g)


def _rows(x):
    """x, or a copy whose last axis is contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class StepSizes(NamedTuple):
    """Sizes of one token, in the order of structs.STEP."""

    batch: int
    writes: int
    heads: int
    groups: int
    key_width: int
    value_width: int


def step_as_given(inputs: Inputs, state: Tensor, scale: float, delta: bool, sizes: StepSizes) -> Tensor:
    """One token: o [B, 1, G*H, V]; ``state`` [B, H, K, V] is overwritten.

    All tensors must be contiguous, beta, g and state float32. The kernel of a small state takes less time than a few
    lines of Python, so nothing is computed here that the caller knows.
    """
    q, k, v, beta, g = inputs
    o = v.new_empty((sizes.batch, 1, sizes.heads * sizes.groups, sizes.value_width))
    library().step(
        structs.STEP.pack(
            *sizes,
            torch.get_num_threads(),
            scale,
            delta,
            v.dtype == torch.bfloat16,
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            0 if beta is None else beta.data_ptr(),
            0 if g is None else g.data_ptr(),
            state.data_ptr(),
            o.data_ptr(),
        )
    )
    if not state.is_inference():
        increment_version(state)  # autograd may have kept it
    return o


def step_kernel(inputs: Inputs, state: Tensor, scale: float, delta: bool) -> Tensor:
    """One token: o [B, 1, G*H, V]; ``state`` [B, H, K, V], contiguous, is overwritten."""
    inputs = inputs.map(Tensor.contiguous)
    batch, heads, key_width, value_width = state.shape
    groups = inputs.q.shape[2] // heads
    sizes = StepSizes(batch, writes_of(inputs.k), heads, groups, key_width, value_width)
    return step_as_given(inputs, state, scale, delta, sizes)
