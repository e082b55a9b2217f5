"""Whether a call may go past torch's dispatcher, straight to the memory of its tensors."""

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types whose data lies where `data_ptr` says: not those of fake, distributed or other wrapped tensors."""


def traced() -> bool:
    """Whether something records what torch does: a compiler, torch.jit.trace, a dispatch mode."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or is_in_torch_dispatch_mode()


def plain(*tensors) -> bool:
    """Whether all of ``tensors``, or those that are not None, are of types that hold their data themselves."""
    return all(x is None or type(x) in PLAIN for x in tensors)
