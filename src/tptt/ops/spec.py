"""What the choice of a backend may depend on."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import native
from .call import Inputs
from .torch_compat import has_tangent, in_forward_mode
from .tracing import ORDINARY
from .validate import check_kinds


class Spec(NamedTuple):
    """The properties of a call by which a backend serves it or not."""

    tokens: int
    writes: int
    key_width: int
    device: str  # type of the device
    dtype: torch.dtype | None  # of q, k and v; None where they differ
    decay: str | None  # None, "head" or "channel"
    delta: bool
    needs_grad: bool
    step_sizes: native.StepSizes | None = None
    """Set for a call of one token that the native kernel can take as it is: it serves the call, no gradient is needed,
    and all tensors, the state among them, are contiguous, beta, g and state in float32."""

    @classmethod
    def of(cls, inputs: Inputs, initial_state: Tensor | None, delta: bool) -> Spec:
        """The Spec of a call, whose tensors are checked here. The result is kept: a call like one before it costs a
        look-up.

        Raises TypeError and ValueError as `check_kinds`.
        """
        given = (*inputs, initial_state)
        needs_grad = torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in given)
        if in_forward_mode() and not needs_grad:
            needs_grad = any(map(has_tangent, given))  # a backend without forward mode then refuses the call
        tracing = torch.compiler.is_compiling()
        checked = _checked if tracing else _checked_once
        kinds: list = []  # see `check_kinds`; with them whether a kernel can read the tensor as it is
        for x in given:
            if isinstance(x, Tensor):  # a compiler knows of no negation that is still to be done
                readable = x.is_contiguous() and (tracing or type(x) in ORDINARY and not x.is_neg())
                kinds.append((x.shape, x.dtype, x.device, readable))
            else:
                kinds.append(None if x is None else type(x))
        return checked(tuple(kinds), delta, needs_grad)


def _checked(kinds, delta, needs_grad):
    check_kinds(kinds)
    q, k, v, _, g, _ = kinds
    shape, dtype, device, _ = k
    spec = Spec(
        tokens=shape[1],
        writes=shape[2] if len(shape) == 5 else 1,
        key_width=shape[-1],
        device=device.type,
        dtype=dtype if q[1] == dtype == v[1] else None,
        decay=None if g is None else "channel" if len(g[0]) == 4 else "head",
        delta=delta,
        needs_grad=needs_grad,
    )
    if spec.tokens != 1 or needs_grad or native.refusal(spec) or not _as_they_are(*kinds):
        return spec
    heads = shape[-2]
    sizes = native.StepSizes(shape[0], spec.writes, heads, q[0][2] // heads, spec.key_width, v[0][-1])
    return spec._replace(step_sizes=sizes)


_checked_once = lru_cache(1024)(_checked)


def _as_they_are(q, k, v, beta, g, state):
    """Whether a kernel can read all tensors without a copy, and there is a state to overwrite."""
    others = [x for x in (beta, g, state) if x is not None]
    return state is not None and all(x[3] for x in (q, k, v, *others)) and all(x[1] == torch.float32 for x in others)
