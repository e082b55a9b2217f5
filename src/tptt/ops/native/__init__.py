"""The recurrences as C++ kernels for CPUs: optional, built by `pip install` where it finds a compiler."""

from .calls import StepSizes, step_as_given
from .fourier import fourier, fourier_backward, fourier_serves
from .library import unavailable
from .one_token import Parameters, memory_step
from .recurrence import native_recurrence, refusal

__all__ = [
    "Parameters",
    "StepSizes",
    "fourier",
    "fourier_backward",
    "fourier_serves",
    "memory_step",
    "native_recurrence",
    "refusal",
    "step_as_given",
    "unavailable",
]
