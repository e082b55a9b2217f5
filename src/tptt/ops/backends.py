"""Which implementation serves a call."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .chunk import chunk_recurrence
from .naive import naive_recurrence
from .step import step_recurrence


@dataclass(frozen=True)
class Spec:
    """What the choice of a backend may depend on."""

    tokens: int
    device: str  # device type
    needs_grad: bool


@dataclass(frozen=True)
class Backend:
    """One implementation. `supports(spec)` returns None, or the reason why it cannot serve the call; asked with None,
    whether it can run on this machine at all. `function` has the arguments of `naive_recurrence`, and chunk_size."""

    supports: Callable[[Spec | None], str | None]
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def _always(spec):
    return None


def _one_token(spec):
    return None if spec is None or spec.tokens == 1 else f"it computes exactly one token, got T = {spec.tokens}"


def _without_chunks(function):
    """The same function, taking and ignoring chunk_size: its result does not depend on it."""
    return lambda *tensors, chunk_size, **options: function(*tensors, **options)


BACKENDS = {
    "naive": Backend(_always, _without_chunks(naive_recurrence)),
    "chunk": Backend(_always, chunk_recurrence),
    "step": Backend(_one_token, _without_chunks(step_recurrence)),
}
NAIVE_UP_TO = 3
"""Tokens up to which the loop is faster than one chunk, forward and backward (tried by hand)."""


def available_backends() -> dict[str, str | None]:
    """{name: None if the backend can run on this machine, else the reason why not}, for every known backend."""
    return {name: backend.supports(None) for name, backend in BACKENDS.items()}


def select(name: str, spec: Spec):
    """The function of backend `name`, or of the fastest for `spec` when it is "auto".

    Raises:
        ValueError: the backend is unknown or cannot serve this call.
    """
    if name == "auto":
        name = _fastest(spec)
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(['auto', *BACKENDS])}")
    reason = BACKENDS[name].supports(spec)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
    return BACKENDS[name].function


def _fastest(spec):
    if spec.tokens == 1 and not spec.needs_grad:
        return "step"
    return "naive" if spec.tokens <= NAIVE_UP_TO else "chunk"
