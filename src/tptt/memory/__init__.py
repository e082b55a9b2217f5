"""The linear branch as modules, and its state in the cache."""

from .branch import LinearMemory
from .cache import adopt_layer
from .layer import LinearAttention

__all__ = ["LinearAttention", "LinearMemory", "adopt_layer"]
