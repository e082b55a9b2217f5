"""The backend "native": `naive_recurrence` through the C++ kernels."""

from __future__ import annotations

import torch

from tptt.ops.tracing import plain, traced

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
    by_dispatch = traced() or not plain(q, k, v, beta, g, state)  # which costs more
    if not by_dispatch:
        q, k, v, beta, g, state = (_resolved(x) for x in (q, k, v, beta, g, state))
    if k.shape[1] > 1 or needs_grad:
        if needs_grad and not by_dispatch:
            return Recurrence.apply(q, k, v, beta, g, state, scale, delta, output_final_state)
        run = recurrence if by_dispatch else forward_kernel
        return run(q, k, v, beta, g, state, scale, delta, needs_grad, output_final_state)[:2]
    if state is None:
        state, inplace = k.new_zeros(len(k), *k.shape[-2:], v.shape[-1], dtype=torch.float32), True
    run = recurrence_step if by_dispatch else step_kernel
    o, after = _step(run, q, k, v, beta, g, scale=scale, state=state, delta=delta, inplace=inplace)
    if inplace and initial_state is not None and after is not initial_state:  # it was resolved: a copy
        after = initial_state.copy_(after)
    return o, after


def _resolved(x):
    """x, or a copy where a negation is still to be done, which the kernels would not see."""
    return x.resolve_neg() if x is not None and x.is_neg() else x


def _step(run, q, k, v, beta, g, *, scale, state, delta, inplace):
    """`native_recurrence` for one token, without gradients; beta, g and state float32.

    Args: run, the operator or the kernel itself; the others as there, T = 1; k, v and beta may lack their axis of writes;
    state [B, H, K, V], overwritten if inplace (it is then float32).
    Returns: o [B, 1, G*H, V] in v's dtype, the state after the token [B, H, K, V] in float32.
    """
    own = state
    if not inplace:
        own = state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    elif not state.is_contiguous():
        own = state.contiguous()
    o = run(q, k, v, beta, g, own, scale, delta)
    return o, state.copy_(own) if inplace and own is not state else own
