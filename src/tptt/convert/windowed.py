"""A base whose layers have a window and no memory yet: what layers and widths are decided on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from tptt.config import MemoryConfig
from tptt.hf import attach_window, detach_memory


@contextmanager
def windowed(base: nn.Module, config: MemoryConfig) -> Iterator[nn.Module]:
    """Within, the layers of ``base`` that ``config`` gives a memory have its window and no memory.

    Afterwards ``base`` is as it was. Layers that are to have a memory alone have the window as well: it stands for what
    their memory learns first.
    """
    attach_window(base, replace(config, memory_only_layers=()))
    try:
        yield base
    finally:
        detach_memory(base)
