"""What stands where a memory was taken out, or is not yet."""

from __future__ import annotations

from torch import nn

from tptt.config import MemoryConfig
from tptt.memory import LinearMemory


class NoMemory(nn.Module):
    """In the place of a `LinearMemory`: the softmax keeps its window; nothing is read, written or mixed in.

    Args:
        config: of the memory that was here, or will be.
        planned: the memory that will be here, on the meta device, for its sizes; None: none will.
    """

    def __init__(self, config: MemoryConfig, planned: LinearMemory | None = None) -> None:
        super().__init__()
        self.config = config
        self._planned = (planned,)  # in a tuple: it is no child, and holds no weights of the model

    @property
    def planned(self) -> LinearMemory | None:
        """The memory that will be here, without weights."""
        return self._planned[0]
