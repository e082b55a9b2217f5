"""Which implementation serves a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import fla, native
from .chunk import chunk_recurrence
from .naive import naive_recurrence
from .step import step_recurrence

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

    @classmethod
    def of(cls, q, k, v, beta, g, initial_state, delta) -> Spec:
        """Of a call's tensors; k, v and beta may lack their axis of writes."""
        given = (x for x in (q, k, v, beta, g, initial_state) if x is not None)
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in given)
        dtype = k.dtype if q.dtype == k.dtype == v.dtype else None
        return cls(
            k.shape[1],
            k.shape[2] if k.dim() == 5 else 1,
            k.shape[-1],
            k.device.type,
            dtype,
            g is not None,
            g is not None and g.dim() == 4,
            delta,
            needs_grad,
        )


@dataclass(frozen=True)
class Backend:
    """One implementation. `supports(spec)` returns None, or the reason why it cannot serve the call; asked with None,
    whether it can run on this machine at all. `function` has the arguments of `naive_recurrence`, those named in
    `options`, and returns what it returns."""

    supports: Callable[[Spec | None], str | None]
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    options: tuple[str, ...] = ()

    def run(self, *tensors, chunk_size=None, needs_grad=False, inplace=False, **options):
        more = {"chunk_size": chunk_size, "needs_grad": needs_grad, "inplace": inplace}
        return self.function(*tensors, **options, **{name: more[name] for name in self.options})


def _always(spec):
    return None


def _one_token(spec):
    return None if spec is None or spec.tokens == 1 else f"it computes exactly one token, got T = {spec.tokens}"


def _native(spec):
    reason = native.unavailable()
    if reason or spec is None:
        return reason
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
    "chunk": Backend(_always, chunk_recurrence, ("chunk_size",)),
    "step": Backend(_one_token, step_recurrence, ("inplace",)),
    "native": Backend(_native, native.native_recurrence, ("needs_grad", "inplace")),
    "fla": Backend(_fla, fla.fla_recurrence, ("needs_grad",)),
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
