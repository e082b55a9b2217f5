"""The linear branch as modules of torch."""

from .linear_attention import LinearAttention
from .linear_memory import LinearMemory
from .update import LayerState, MemoryUpdate, Tokens

__all__ = ["LayerState", "LinearAttention", "LinearMemory", "MemoryUpdate", "Tokens"]
