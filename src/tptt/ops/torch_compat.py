"""The names that ops needs and that torch may drop without notice; nowhere else in ops stands a private name of torch.

Each has a way to do without it that gives the same numbers: what is not known counts as "yes, something records this
call", and such a call takes the slower way that is always right. `FALLBACKS` says which names are missing and what
happens instead; the import warns of them once.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad

FALLBACKS: dict[str, str] = {}
"""{missing name: what is done without it}, empty where torch has them all."""


def _yes() -> bool:
    return True


try:
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode as in_dispatch_mode
except ImportError:
    FALLBACKS["torch.utils._python_dispatch.is_in_torch_dispatch_mode"] = "the kernels are called as torch operators"
    in_dispatch_mode = _yes

try:
    from torch.jit import is_tracing as in_jit_trace  # public, but torch.jit is deprecated as a whole
except ImportError:
    FALLBACKS["torch.jit.is_tracing"] = "the kernels are called as torch operators"
    in_jit_trace = _yes

if not hasattr(forward_ad, "_current_level"):
    FALLBACKS["torch.autograd.forward_ad._current_level"] = "each call asks every tensor for a forward-mode tangent"

if FALLBACKS:
    missing = "; ".join(f"{name}: {instead}" for name, instead in FALLBACKS.items())
    warnings.warn(f"torch {torch.__version__} lacks names that tptt.ops uses. {missing}", RuntimeWarning, stacklevel=2)


def in_forward_mode() -> bool:
    """Whether a tensor may have a forward-mode tangent: a dual level is open, or that is unknown."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def has_tangent(x: object) -> bool:
    """Whether forward-mode differentiation follows `x`; what is no tensor has no tangent."""
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None
