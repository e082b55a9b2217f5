"""Which implementation serves a call.

What runs where, with "auto":
    CPU, float32 or bfloat16, no decay per channel: "native", the C++ kernels, where they were built.
    CUDA, bfloat16 or float16, keys of at most 256 channels: "fla", where fla-core is installed.
    Anything else, on any device: PyTorch, as "step", "naive" or "chunk" by the number of tokens.
The memory of a converted model computes its features in float32, whatever the model's dtype, and they are 2,048 wide by
default. So fla-core never serves it: on a GPU it runs on "chunk" and "step" in float32. `backend_for` answers for any
call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import fla, native
from .call import Call
from .chunk import chunk_recurrence
from .naive import naive_recurrence
from .spec import Spec
from .step import step_recurrence


@dataclass(frozen=True)
class Backend:
    """One implementation.

    `supports(spec)` returns None, or the reason why it cannot serve the call; asked with None, whether it can run on
    this machine at all. `function` takes the arguments of `naive_recurrence` and those named in `options`. It returns
    what `naive_recurrence` returns, perhaps without the state where "output_final_state" is one of its options and
    false. `optional_writes`: it also takes k, v and beta without their axis of writes.
    """

    supports: Callable[[Spec | None], str | None]
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    options: tuple[str, ...] = ()
    optional_writes: bool = False

    def run(self, call: Call, needs_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(o, final state) of `call`, which this backend supports."""
        inputs = call.inputs if self.optional_writes else call.inputs.with_writes()
        options = {name: needs_grad if name == "needs_grad" else getattr(call, name) for name in self.options}
        return self.function(*inputs, scale=call.scale, initial_state=call.initial_state, delta=call.delta, **options)


def _always(spec):
    return None


def _one_token(spec):
    return None if spec is None or spec.tokens == 1 else f"it computes exactly one token, got T = {spec.tokens}"


def _native(spec):  # the reasons that lie in the call first: they hold on every machine
    return (native.refusal(spec) if spec else None) or native.unavailable()


def _fla(spec):
    reason = (fla.refusal(spec) if spec else None) or fla.unavailable()
    return reason or (fla.no_gated_gradient() if spec and spec.decay == "head" and spec.needs_grad else None)


BACKENDS = {
    "naive": Backend(_always, naive_recurrence),
    "chunk": Backend(_always, chunk_recurrence, ("chunk_size", "needs_grad")),
    "step": Backend(_one_token, step_recurrence, ("inplace",), optional_writes=True),
    "native": Backend(
        _native, native.native_recurrence, ("needs_grad", "inplace", "output_final_state"), optional_writes=True
    ),
    "fla": Backend(_fla, fla.fla_recurrence, ("needs_grad", "output_final_state"), optional_writes=True),
}
NAIVE_UP_TO = 3
"""Up to this number of tokens the loop is taken instead of one chunk in PyTorch."""


def available_backends() -> dict[str, str | None]:
    """{name: None if the backend can run on this machine, else the reason why not}, for every known backend."""
    return {name: backend.supports(None) for name, backend in BACKENDS.items()}


class BackendChoice(NamedTuple):
    """What `backend_for` answers."""

    name: str
    """The backend that serves the call."""
    refusals: dict[str, str | None]
    """{name: None if the backend could serve the call, else the reason why not}, for every known backend."""


def backend_for(
    *,
    tokens: int,
    key_width: int,
    dtype: torch.dtype | None,
    device: str | torch.device,
    writes: int = 1,
    decay: str | None = None,
    delta: bool = True,
    needs_grad: bool = False,
) -> BackendChoice:
    """Which backend `delta_rule` or `linear_attention` takes by itself (backend "auto") for a call on this machine.

    `delta_rule_step` takes "native" where that can serve the call, else "step".

    Args:
        tokens: T. With packed sequences each batch of sequences of similar length is a call of its own.
        key_width: K.
        dtype: of q, k and v; None where they differ.
        device: of all tensors.
        writes: N, writes per token.
        decay: None, "head" (g [B, T, H]) or "channel" (g [B, T, H, K]).
        delta: True for `delta_rule`, False for `linear_attention`.
        needs_grad: whether a gradient of an input is wanted.

    Raises:
        ValueError: a size below 1, or an unknown decay.
    """
    for name, size in (("tokens", tokens), ("key_width", key_width), ("writes", writes)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if decay not in (None, "head", "channel"):
        raise ValueError(f"decay must be None, 'head' or 'channel', got {decay!r}")
    spec = Spec(tokens, writes, key_width, torch.device(device).type, dtype, decay, delta, needs_grad)
    return BackendChoice(fastest(spec), {name: backend.supports(spec) for name, backend in BACKENDS.items()})


def select(name: str, spec: Spec) -> Backend:
    """Backend `name`, or the one that "auto" takes for `spec`.

    Raises:
        ValueError: the backend is unknown or cannot serve this call.
    """
    if name == "auto":
        return BACKENDS[fastest(spec)]
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(['auto', *BACKENDS])}")
    reason = BACKENDS[name].supports(spec)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
    return BACKENDS[name]


def fastest(spec: Spec) -> str:
    """The name of the backend that "auto" takes for `spec`."""
    for name in ("native", "fla"):
        if BACKENDS[name].supports(spec) is None:
            return name
    if spec.tokens == 1 and not spec.needs_grad:
        return "step"
    return "naive" if spec.tokens <= NAIVE_UP_TO else "chunk"
