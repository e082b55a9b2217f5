"""Finds and loads the compiled kernels."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from tptt.ops.native import structs

FILE = Path(__file__).parent / "libtptt_kernels.so"
SET_VARIABLE = "TPTT_INSTRUCTIONS"
"""Environment variable: one of INSTRUCTION_SETS, to run another one than the best this processor has."""
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "amx")


class Library:
    """The loaded kernels. `forward`, `backward` (a Problem), `step` (a Step), `memory_step` (a MemoryStep), `fourier` and
    `fourier_backward` (a Fourier) run on `instructions`."""

    def __init__(self, file: Path, wanted: str | None = None) -> None:
        loaded = _load(file)
        sizes = (ctypes.c_int64 * 4)()
        loaded.tptt_sizes(sizes)
        known = structs.Problem, structs.Step, structs.MemoryStep, structs.Fourier
        if tuple(sizes) != tuple(map(ctypes.sizeof, known)):
            raise OSError(f"{file.name} was built from other sources; install tptt again")
        best = loaded.tptt_best()
        number = INSTRUCTION_SETS.index(wanted) if wanted in INSTRUCTION_SETS else best
        if wanted and (wanted not in INSTRUCTION_SETS or number > best):
            valid = ", ".join(INSTRUCTION_SETS[: best + 1])
            raise OSError(f"{SET_VARIABLE}={wanted} is not available on this processor; valid: {valid}")
        self.instructions = INSTRUCTION_SETS[number]
        self.forward = _bound(loaded.tptt_forward, number)
        self.backward = _bound(loaded.tptt_backward, number)
        self.step = _bound(loaded.tptt_step, number)
        self.memory_step = _bound(loaded.tptt_memory_step, number)
        self.fourier = _bound(loaded.tptt_fourier, number)
        self.fourier_backward = _bound(loaded.tptt_fourier_backward, number)


def _bound(function, number):
    function.restype = None
    function.argtypes = (ctypes.c_int, ctypes.c_void_p)
    return lambda struct: function(number, ctypes.addressof(struct))


def _load(file):
    """The kernels name no OpenMP library, so that they share the one torch has loaded, and its threads."""
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(file))


@cache
def _attempt() -> Library | str:
    if not FILE.exists():
        return "it was not built: `pip install` found no C++ compiler (g++ or clang++), or this is not Linux or macOS"
    try:
        return Library(FILE, os.environ.get(SET_VARIABLE))
    except OSError as error:
        return f"it could not be loaded: {error}"


def library() -> Library:
    """The loaded kernels. Raises RuntimeError where there are none."""
    found = _attempt()
    if isinstance(found, str):
        raise RuntimeError(f"tptt's native kernels: {found}")
    return found


@torch.compiler.assume_constant_result  # a tracer must not look for files
def unavailable() -> str | None:
    """None, or why there are no kernels here."""
    found = _attempt()
    return found if isinstance(found, str) else None
