"""The linear branch as modules of torch."""

from .linear_attention import LinearAttention
from .linear_memory import LinearMemory

__all__ = ["LinearAttention", "LinearMemory"]
