"""The backend "native": `naive_recurrence` through the C++ kernels."""

from __future__ import annotations

import torch

from .operators import Recurrence, forward_kernel, recurrence, recurrence_step, step_kernel


def native_recurrence(
    q, k, v, beta, g, *, scale, initial_state, delta, inplace=False, needs_grad=False, output_final_state=True
):  # fmt: skip
    """`naive_recurrence` for float32 or bfloat16 q, k and v (one dtype), a scalar decay or none, on a CPU.

    Args: q [B, T, G*H, K], k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H] or None (all three perhaps without
    their axis of writes), g [B, T, H] or None, initial_state [B, H, K, V] or None; needs_grad: keep what the backward
    needs; inplace (T = 1, a float32 state): overwrite initial_state; without output_final_state the state that comes back
    may be empty. Arguments are taken as valid.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32.
    """
    beta, g, state = (x if x is None else x.float() for x in (beta, g, initial_state))
    if k.shape[1] > 1 or needs_grad:
        if needs_grad and not torch.compiler.is_compiling():
            return Recurrence.apply(q, k, v, beta, g, state, scale, delta, output_final_state)
        # one that can be traced costs more
        run = recurrence if torch.compiler.is_compiling() else forward_kernel
        return run(q, k, v, beta, g, state, scale, delta, needs_grad, output_final_state)[:2]
    if state is None:
        state, inplace = k.new_zeros(len(k), *k.shape[-2:], v.shape[-1], dtype=torch.float32), True
    return _step(q, k, v, beta, g, scale=scale, state=state, delta=delta, inplace=inplace)


def _step(q, k, v, beta, g, *, scale, state, delta, inplace):
    """`native_recurrence` for one token, without gradients.

    Args: as there, T = 1; k, v and beta may lack their axis of writes; state [B, H, K, V], overwritten if inplace (it is
    then float32).
    Returns: o [B, 1, G*H, V] in v's dtype, the state after the token [B, H, K, V] in float32.
    """
    beta, g = (x if x is None or x.dtype == torch.float32 else x.float() for x in (beta, g))
    own = state
    if not inplace:
        own = state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    elif not state.is_contiguous():
        own = state.contiguous()
    # straight to the kernel where nothing traces: an operator's dispatch takes as long as the step of a small state
    run = recurrence_step if torch.compiler.is_compiling() else step_kernel
    o = run(q, k, v, beta, g, own, scale, delta)
    return o, state.copy_(own) if inplace and own is not state else own
