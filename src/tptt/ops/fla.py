"""The backend "fla": the Triton kernels of fla-core on CUDA, imported at the first call.

fla's layout is ours, with one head count for q and k: grouped queries are served by repeating keys and values.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

RECURRENT_UP_TO = 16
"""Tokens up to which, without gradients, fla's loop in one kernel is used instead of its chunks."""


@torch.compiler.assume_constant_result  # a tracer must not look for packages
def unavailable() -> str | None:
    """None, or why fla cannot run here."""
    return _unavailable()  # a tracer walks through a cache itself


@cache
def _unavailable():
    try:
        version("fla-core")
    except PackageNotFoundError:
        return "fla-core is not installed (pip install 'tptt[gpu]')"
    return None if torch.cuda.is_available() else "there is no CUDA device"


@torch.compiler.assume_constant_result
def no_gated_gradient() -> str | None:
    """None, or why fla's gradients with a scalar decay cannot be had here: it refuses them where Triton gets them wrong."""
    return _no_gated_gradient()


@cache
def _no_gated_gradient():
    import triton  # by whatever package it came (triton, pytorch-triton)

    found = tuple(int(x) for x in triton.__version__.split("+")[0].split(".")[:3] if x.isdigit())
    if torch.cuda.get_device_capability()[0] == 9 and (3, 4) <= found < (3, 7, 1):
        return "its gradients with a scalar decay are wrong on Hopper between Triton 3.4 and 3.7.1: update triton"
    return None


def fla_recurrence(q, k, v, beta, g, *, scale, initial_state, delta, needs_grad=False, output_final_state=True):
    """`naive_recurrence` by fla-core.

    Args: q [B, T, G*H, K], k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H] or None, where N may be missing, g
    [B, T, H], [B, T, H, K] or None, initial_state [B, H, K, V] or None, all on CUDA. Arguments are taken as valid.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32, or None without output_final_state.
    """
    tokens, steps, groups = k.shape[1], 1, q.shape[2] // k.shape[-2]
    if k.dim() == 5:
        steps = k.shape[2]
        k, v, beta = (x if x is None else x.flatten(1, 2) for x in (k, v, beta))
    if groups > 1:
        k, v, beta = (x if x is None else x.repeat_interleave(groups, 2) for x in (k, v, beta))
        g = g if g is None else g.repeat_interleave(groups, 2)
        initial_state = None if initial_state is None else initial_state.repeat_interleave(groups, 1)
    if g is not None:
        g = g.float()
    state = None if initial_state is None else initial_state.float()
    options = {"scale": scale, "initial_state": state, "output_final_state": output_final_state}
    short = tokens <= RECURRENT_UP_TO and not needs_grad
    run = _delta if delta else _linear
    o, state = run(q.contiguous(), k.contiguous(), v.contiguous(), beta, g, steps, short, options)
    return o.to(v.dtype), state[:, ::groups] if output_final_state else None


def _delta(q, k, v, beta, g, steps, short, options):
    per_channel = g is not None and g.dim() == 4
    if steps > 1:
        from fla.ops.gated_delta_product import chunk_gated_delta_product

        return chunk_gated_delta_product(q, k, v, g, beta, num_householder=steps, **options)
    if short:
        from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

        return fused_recurrent_gated_delta_rule(q, k, v, **{"gk" if per_channel else "g": g}, beta=beta, **options)
    if per_channel:
        from fla.ops.kda import chunk_kda

        return chunk_kda(q, k, v, g, beta, **options)
    if g is not None:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        return chunk_gated_delta_rule(q, k, v, g, beta, **options)
    from fla.ops.delta_rule import chunk_delta_rule

    return chunk_delta_rule(q, k, v, beta, **options)


def _linear(q, k, v, beta, g, steps, short, options):
    if beta is not None:
        v = v * beta.unsqueeze(3).to(v.dtype)
    if g is not None and g.dim() == 4:
        from fla.ops.gla import chunk_gla, fused_recurrent_gla

        return fused_recurrent_gla(q, k, v, gk=g, **options) if short else chunk_gla(q, k, v, g, **options)
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    return (fused_recurrent_simple_gla if short else chunk_simple_gla)(q, k, v, g, **options)
