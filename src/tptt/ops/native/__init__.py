"""The recurrences as C++ kernels for CPUs: optional, built by `pip install` where it finds a compiler."""

from .fourier import fourier, fourier_backward, fourier_serves
from .library import unavailable
from .one_token import Parameters, memory_step
from .operators import plain_step
from .recurrence import native_recurrence

__all__ = [
    "Parameters",
    "fourier",
    "fourier_backward",
    "fourier_serves",
    "memory_step",
    "native_recurrence",
    "plain_step",
    "unavailable",
]
