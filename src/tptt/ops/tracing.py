"""Whether a call may go past torch's dispatcher, straight to the memory of its tensors."""

import torch

from .torch_compat import in_dispatch_mode, in_jit_trace

ORDINARY = (torch.Tensor, torch.nn.Parameter)
"""Types whose data lies where `data_ptr` says, unlike that of fake, distributed or other wrapped tensors."""


def traced() -> bool:
    """Whether something records what torch does: a compiler, torch.jit.trace, a dispatch mode."""
    return torch.compiler.is_compiling() or in_jit_trace() or in_dispatch_mode()


def are_ordinary(*tensors: torch.Tensor | None) -> bool:
    """Whether each of `tensors`, where it is not None, is of a type that holds its data itself."""
    return all(x is None or type(x) in ORDINARY for x in tensors)
