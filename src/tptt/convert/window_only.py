"""The softmax window without its memory: the arm that says what the memory adds."""

from __future__ import annotations

from torch import nn

from tptt.hf import NoMemory, memories, memory_layers
from tptt.memory import LinearMemory


def window_alone(model: nn.Module) -> nn.Module:
    """Take the memory out of ``model`` and leave its window, in place. Computes what mu = 0 computes, without the cost.

    For measuring and training, not for saving or for caches that record. Returns ``model``.

    Raises:
        ValueError: the model carries no memory.
    """
    if not memories(model):
        raise ValueError(f"{type(model).__name__} carries no memory, so it has no window to leave")
    for layer in memory_layers(model):
        if isinstance(layer.memory, LinearMemory):
            layer.replace_memory(NoMemory(layer.memory.config))
    return model
