"""The backend "native": `naive_recurrence` through the C++ kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..call import Inputs
from ..tracing import are_ordinary, traced
from .calls import ForwardCall, forward_kernel, step_kernel
from .operators import DirectRecurrence, arguments, recurrence, recurrence_step

if TYPE_CHECKING:
    from ..spec import Spec


def refusal(spec: Spec) -> str | None:
    """None, or why the kernels cannot serve such a call."""
    if spec.device != "cpu":
        return f"it runs on the CPU, the tensors are on {spec.device}"
    if spec.dtype not in (torch.float32, torch.bfloat16):
        return f"q, k and v must all be float32 or all bfloat16, got {spec.dtype or 'several dtypes'}"
    return "it has no decay per channel" if spec.decay == "channel" else None


def native_recurrence(
    q,
    k,
    v,
    beta,
    g,
    *,
    scale,
    initial_state,
    delta,
    inplace=False,
    needs_grad=False,
    output_final_state=True,
):
    """`naive_recurrence` for float32 or bfloat16 q, k and v (one dtype), a scalar decay or none, on a CPU.

    Args: q [B, T, G*H, K], k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H] or None (k, v and beta perhaps
    without their axis of writes), g [B, T, H] or None, initial_state [B, H, K, V] or None; needs_grad: keep what the
    backward needs; inplace (T = 1, a float32 state): overwrite initial_state; without output_final_state the state that
    comes back may be empty. Arguments are taken as valid.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32.
    Raises: RuntimeError where the system has too little memory; initial_state is then as it was.
    """
    beta, g, state = (x if x is None else x.float() for x in (beta, g, initial_state))
    dispatched = traced() or not are_ordinary(q, k, v, beta, g, state)  # which takes longer
    inputs = Inputs(q, k, v, beta, g)
    if not dispatched:
        inputs, state = inputs.map(_resolved), state if state is None else _resolved(state)
    if k.shape[1] > 1 or needs_grad:
        call = ForwardCall(inputs, state, scale, delta, needs_grad, output_final_state)
        if dispatched:
            return recurrence(*arguments(call))[:2]
        return DirectRecurrence.apply(*arguments(call)) if needs_grad else forward_kernel(call)[:2]
    own = _own(inputs, state, inplace)
    if dispatched:
        o = recurrence_step(*inputs, own, scale, delta)
    else:
        o = step_kernel(inputs, own, scale, delta)
    if inplace and initial_state is not None and own is not initial_state:  # which was not contiguous, or negated
        own = initial_state.copy_(own)
    return o, own


def _resolved(x):
    """x, or a copy where a negation is still to be done, which the kernels would not see."""
    return x.resolve_neg() if x.is_neg() else x


def _own(inputs, state, inplace):
    """A contiguous float32 state for the step to overwrite: `state` itself where that is wanted and can be."""
    if state is None:
        k, v = inputs.k, inputs.v
        return k.new_zeros(len(k), *k.shape[-2:], v.shape[-1], dtype=torch.float32)
    if inplace:
        return state.contiguous()
    return state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
