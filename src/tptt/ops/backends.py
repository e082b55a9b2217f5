"""Which implementation serves a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tptt.ops import fla, native

from .chunk import chunk_recurrence
from .naive import naive_recurrence
from .step import step_recurrence
from .tracing import PLAIN
from .validate import check_kinds

HALF = (torch.bfloat16, torch.float16)


class Spec(NamedTuple):
    """What the choice of a backend may depend on."""

    tokens: int
    writes: int
    key_width: int
    device: str  # device type
    dtype: torch.dtype | None  # of q, k and v; None where they differ
    gated: bool
    per_channel: bool
    delta: bool
    needs_grad: bool
    plain: tuple[int, ...] | None = None
    """Of one token B, N, H, G, K, V, if the kernels can take its tensors as they are: contiguous, beta, g and state float32."""

    @classmethod
    def of(cls, q, k, v, beta, g, initial_state, delta) -> Spec:
        """Of a call's tensors, which are checked; k, v and beta may lack their axis of writes. A call like one before it
        costs a look-up: 3 us instead of 25. Raises TypeError and ValueError as `check_kinds`."""
        given = q, k, v, beta, g, initial_state
        needs_grad = torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in given)
        if forward_ad._current_level >= 0 and not needs_grad:  # those without forward mode say so there
            needs_grad = any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in given)
        tracing = torch.compiler.is_compiling()  # a compiler knows no negations that are still to be done
        checked = _checked if tracing else _checked_once
        kinds = [
            None if x is None
            else (x.shape, x.dtype, x.device, x.is_contiguous() and (tracing or type(x) in PLAIN and not x.is_neg()))
            if isinstance(x, Tensor) else type(x)
            for x in given
        ]  # fmt: skip
        return checked(tuple(kinds), delta, needs_grad)


def _checked(kinds, delta, needs_grad):
    check_kinds(kinds)
    q, k, v, beta, g, state = kinds
    (batch, tokens, *several, heads, key_width), device = k[0], k[2]
    spec = Spec(
        tokens,
        several[0] if several else 1,
        key_width,
        device.type,
        k[1] if q[1] == k[1] == v[1] else None,
        g is not None,
        g is not None and len(g[0]) == 4,
        delta,
        needs_grad,
    )
    others = [x for x in (beta, g, state) if x is not None]
    served = tokens == 1 and not needs_grad and _native_serves(spec) is None and state is not None
    if not served or not all(x[3] for x in (q, k, v, *others)) or any(x[1] != torch.float32 for x in others):
        return spec
    return spec._replace(plain=(batch, spec.writes, heads, q[0][2] // heads, key_width, v[0][-1]))


_checked_once = lru_cache(1024)(_checked)


@dataclass(frozen=True)
class Backend:
    """One implementation. `supports(spec)` returns None, or the reason why it cannot serve the call; asked with None,
    whether it can run on this machine at all. `function` has the arguments of `naive_recurrence`, those named in
    `options`, and returns what it returns, the state perhaps not where "output_final_state" is one of them and false.
    `bare`: k, v and beta may lack their axis of writes."""

    supports: Callable[[Spec | None], str | None]
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    options: tuple[str, ...] = ()
    bare: bool = False

    def run(self, q, k, v, beta, g, state, scale, delta, **given):
        more = {name: given[name] for name in self.options}
        return self.function(q, k, v, beta, g, scale=scale, initial_state=state, delta=delta, **more)


def _always(spec):
    return None


def _one_token(spec):
    return None if spec is None or spec.tokens == 1 else f"it computes exactly one token, got T = {spec.tokens}"


def _native(spec):
    reason = native.unavailable()
    return reason if reason or spec is None else _native_serves(spec)


def _native_serves(spec):
    if spec.device != "cpu":
        return f"it runs on the CPU, the tensors are on {spec.device}"
    if spec.dtype not in (torch.float32, torch.bfloat16):
        return f"q, k and v must all be float32 or all bfloat16, got {spec.dtype or 'several dtypes'}"
    return "it has no decay per channel" if spec.per_channel else None


def _fla(spec):
    reason = fla.unavailable()
    if reason or spec is None:
        return reason
    if spec.device != "cuda":
        return f"it runs on CUDA, the tensors are on {spec.device}"
    if spec.key_width > 256:
        return f"its keys have 256 channels at most, got {spec.key_width}"
    if spec.writes > 1 and (spec.per_channel or not spec.delta):
        return "of several writes per token it has only the delta rule without a decay per channel"
    if spec.dtype not in HALF:
        return f"q, k and v must all be bfloat16 or all float16, got {spec.dtype or 'several dtypes'}"
    scalar = spec.gated and not spec.per_channel
    return fla.no_gated_gradient() if scalar and spec.needs_grad else None


BACKENDS = {
    "naive": Backend(_always, naive_recurrence),
    "chunk": Backend(_always, chunk_recurrence, ("chunk_size", "needs_grad")),
    "step": Backend(_one_token, step_recurrence, ("inplace",), bare=True),
    "native": Backend(_native, native.native_recurrence, ("needs_grad", "inplace", "output_final_state"), bare=True),
    "fla": Backend(_fla, fla.fla_recurrence, ("needs_grad", "output_final_state"), bare=True),
}
NAIVE_UP_TO = 3
"""Tokens up to which the loop is faster than one chunk in PyTorch, forward and backward (tried by hand)."""


def available_backends() -> dict[str, str | None]:
    """{name: None if the backend can run on this machine, else the reason why not}, for every known backend."""
    return {name: backend.supports(None) for name, backend in BACKENDS.items()}


def select(name: str, spec: Spec) -> Backend:
    """Backend `name`, or the fastest for `spec` when it is "auto".

    Raises:
        ValueError: the backend is unknown or cannot serve this call.
    """
    if name == "auto":
        return BACKENDS[_fastest(spec)]
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(['auto', *BACKENDS])}")
    reason = BACKENDS[name].supports(spec)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
    return BACKENDS[name]


def _fastest(spec):
    for name in ("native", "fla"):
        if BACKENDS[name].supports(spec) is None:
            return name
    if spec.tokens == 1 and not spec.needs_grad:
        return "step"
    return "naive" if spec.tokens <= NAIVE_UP_TO else "chunk"
