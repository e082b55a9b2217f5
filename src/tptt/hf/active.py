"""The memory that is at work in an attention module."""

from __future__ import annotations

from typing import cast

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from tptt.memory import LinearMemory


def memory_of(module: nn.Module) -> LinearMemory:
    """The memory at work in the attention ``module``: of the copies that peft trains (``modules_to_save=["liza"]``) the
    active adapter's, or the one they were copied from. Where training.window_alone has taken it out, what stands there."""
    found = module.liza
    if not isinstance(found, ModulesToSaveWrapper):
        return cast(LinearMemory, found)
    copies, active = found.modules_to_save, found.active_adapters
    if found.disable_adapters or not active or active[0] not in copies:
        return cast(LinearMemory, found.original_module)
    return cast(LinearMemory, copies[active[0]])
