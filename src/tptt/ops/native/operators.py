"""The kernels as operators of torch.library, for calls that something records (tracing.py): with shapes and gradients;
and as an autograd function for all other calls.

Operators of torch.library take tensors and numbers one by one. They pack them into the objects of calls.py at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..call import Inputs
from .calls import BackwardCall, ForwardCall, backward_kernel, forward_kernel, step_kernel


def _forward_call(q, k, v, beta, g, *rest):
    return ForwardCall(Inputs(q, k, v, beta, g), *rest)


def _backward_call(q, k, v, beta, g, *rest):
    return BackwardCall(Inputs(q, k, v, beta, g), *rest)


def arguments(call: ForwardCall | BackwardCall) -> tuple:
    """The arguments of the operator that computes ``call``."""
    return (*call.inputs, *call[1:])


@torch.library.custom_op("tptt::recurrence", mutates_args=(), device_types="cpu")
def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    delta: bool,
    keep: bool,
    final: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward_kernel` of the `ForwardCall` with these fields."""
    return forward_kernel(_forward_call(q, k, v, beta, g, initial_state, scale, delta, keep, final))


@recurrence.register_fake
def _outputs(*given):
    return _forward_call(*given).outputs()


@torch.library.custom_op("tptt::recurrence_backward", mutates_args=(), device_types="cpu")
def recurrence_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    saved: Tensor,
    d_o: Tensor,
    d_final_state: Tensor | None,
    scale: float,
    delta: bool,
    started: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`backward_kernel` of the `BackwardCall` with these fields."""
    return backward_kernel(_backward_call(q, k, v, beta, g, saved, d_o, d_final_state, scale, delta, started))


@recurrence_backward.register_fake
def _gradients(*given):
    return _backward_call(*given).gradients()


def _keep(ctx, call, saved):
    ctx.save_for_backward(*call.inputs, saved)
    ctx.scale, ctx.delta, ctx.final, ctx.started = call.scale, call.delta, call.final, call.initial_state is not None


def _kept(ctx, d_o, d_final_state):
    """The `BackwardCall` of what `_keep` kept."""
    *inputs, saved = ctx.saved_tensors
    d_final_state = d_final_state if ctx.final else None
    return BackwardCall(Inputs(*inputs), saved, d_o, d_final_state, ctx.scale, ctx.delta, ctx.started)


def _input_gradients(call, gradients):
    """Those of q, k, v, beta, g and the initial state; None for what is absent."""
    d_q, d_k, d_v, d_beta, d_g, d_state = gradients
    d_beta = None if call.inputs.beta is None else d_beta
    return d_q, d_k, d_v, d_beta, None if call.inputs.g is None else d_g, d_state if call.started else None


def _setup(ctx, inputs, output):
    _keep(ctx, _forward_call(*inputs), output[2])
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx, d_o, d_final_state, _):
    call = _kept(ctx, d_o, d_final_state)
    return *_input_gradients(call, recurrence_backward(*arguments(call))), None, None, None, None


recurrence.register_autograd(_differentiate, setup_context=_setup)


class DirectRecurrence(torch.autograd.Function):
    """`recurrence` for calls that nothing records: it spares the way through torch's dispatcher and back, which takes
    longer than a short call. Takes the `arguments` of a `ForwardCall` with `keep`; gives o and the final state."""

    @staticmethod
    def forward(ctx, *given):
        call = _forward_call(*given)
        o, state, saved = forward_kernel(call)
        ctx.set_materialize_grads(False)
        _keep(ctx, call, saved)
        return o, state

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final_state):
        if d_o is None:  # only the state was used
            q, _, v = ctx.saved_tensors[:3]
            d_o = v.new_zeros(*q.shape[:3], v.shape[-1])
        call = _kept(ctx, d_o, d_final_state)
        return *_input_gradients(call, backward_kernel(call)), None, None, None, None


@torch.library.custom_op("tptt::recurrence_step", mutates_args=("state",), device_types="cpu")
def recurrence_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    state: Tensor,
    scale: float,
    delta: bool,
) -> Tensor:
    """`step_kernel` of these tensors."""
    return step_kernel(Inputs(q, k, v, beta, g), state, scale, delta)


@recurrence_step.register_fake
def _step_output(q, k, v, *_):
    return v.new_empty(v.shape[0], 1, q.shape[2], v.shape[-1])
