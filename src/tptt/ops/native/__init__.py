"""The recurrences as C++ kernels for CPUs: optional, built by `pip install` where it finds a compiler."""

from .library import unavailable
from .recurrence import native_recurrence

__all__ = ["native_recurrence", "unavailable"]
