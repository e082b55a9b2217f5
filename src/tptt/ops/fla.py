"""The backend "fla": the Triton kernels of fla-core on CUDA, imported at the first call.

It serves calls of `delta_rule` and `linear_attention` with q, k and v in bfloat16 or float16 and keys of at most 256
channels. The memory of a converted model is no such call: its features are float32 and wider (see backends.py). fla has
the same layout, but one head count for q and k: for grouped queries, keys and values are repeated.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

from .call import Inputs

if TYPE_CHECKING:
    from .spec import Spec

HALF = (torch.bfloat16, torch.float16)
WIDEST_KEYS = 256

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
        return "fla-core is not installed (pip install fla-core)"
    return None if torch.cuda.is_available() else "there is no CUDA device"


@torch.compiler.assume_constant_result
def no_gated_gradient() -> str | None:
    """None, or why fla has no gradients with a scalar decay here: it refuses them where Triton computes them
    wrongly."""
    return _no_gated_gradient()


@cache
def _no_gated_gradient():
    import triton  # by whatever package it came (triton, pytorch-triton)

    found = tuple(int(x) for x in triton.__version__.split("+")[0].split(".")[:3] if x.isdigit())
    if torch.cuda.get_device_capability()[0] == 9 and (3, 4) <= found < (3, 7, 1):
        return "its gradients with a scalar decay are wrong on Hopper between Triton 3.4 and 3.7.1: update triton"
    return None


def refusal(spec: Spec) -> str | None:
    """None, or why fla cannot serve such a call on any machine."""
    if spec.device != "cuda":
        return f"it runs on CUDA, the tensors are on {spec.device}"
    if spec.key_width > WIDEST_KEYS:
        return f"its keys have {WIDEST_KEYS} channels at most, got {spec.key_width}"
    if spec.writes > 1 and (spec.decay == "channel" or not spec.delta):
        return "of several writes per token it has only the delta rule without a decay per channel"
    if spec.dtype not in HALF:
        return f"q, k and v must all be bfloat16 or all float16, got {spec.dtype or 'several dtypes'}"
    return None


def fla_recurrence(q, k, v, beta, g, *, scale, initial_state, delta, needs_grad=False, output_final_state=True):
    """`naive_recurrence` by fla-core.

    Args: q [B, T, G*H, K], k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H] or None, where N may be missing, g
    [B, T, H], [B, T, H, K] or None, initial_state [B, H, K, V] or None, all on CUDA. Arguments are taken as valid.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32, or None without output_final_state.
    """
    tokens, writes, groups = k.shape[1], 1, q.shape[2] // k.shape[-2]
    if k.dim() == 5:
        writes = k.shape[2]
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
    inputs = Inputs(q.contiguous(), k.contiguous(), v.contiguous(), beta, g)
    if delta:
        o, state = _delta(inputs, writes, short, options)
    else:
        o, state = _linear(inputs, short, options)
    return o.to(v.dtype), state[:, ::groups] if output_final_state else None


def _delta(inputs, writes, short, options):
    q, k, v, beta, g = inputs
    per_channel = g is not None and g.dim() == 4
    if writes > 1:
        from fla.ops.gated_delta_product import chunk_gated_delta_product

        return chunk_gated_delta_product(q, k, v, g, beta, num_householder=writes, **options)
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


def _linear(inputs, short, options):
    q, k, v, beta, g = inputs
    if beta is not None:
        v = v * beta.unsqueeze(3).to(v.dtype)
    if g is not None and g.dim() == 4:
        from fla.ops.gla import chunk_gla, fused_recurrent_gla

        return fused_recurrent_gla(q, k, v, gk=g, **options) if short else chunk_gla(q, k, v, g, **options)
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    return (fused_recurrent_simple_gla if short else chunk_simple_gla)(q, k, v, g, **options)
