"""The linear branch as modules, and its state in the cache."""

from .branch import LinearMemory
from .cache import adopt_layer

__all__ = ["LinearMemory", "adopt_layer"]
