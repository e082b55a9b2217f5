"""Finds and loads the compiled kernels."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from . import structs
from .library_file import REBUILD, check_file

FILE = Path(__file__).parent / "libtptt_kernels.so"
SET_VARIABLE = "TPTT_INSTRUCTIONS"
"""Environment variable: one of INSTRUCTION_SETS, to run on it instead of the best set that this processor has."""
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "amx")
OUT_OF_MEMORY = "tptt's native kernels ran out of memory. The state and other tensors to overwrite are as they were."


class Library:
    """The loaded kernels. `forward`, `backward` (a packed PROBLEM of structs.py), `step` (STEP), `memory_step`
    (MEMORY_STEP), `fourier` and `fourier_backward` (FOURIER) run on `instructions`.

    Each raises RuntimeError, as PyTorch does on a CPU, where the system has too little memory for its working space.

    Args:
        file: the compiled library.
        wanted: one of INSTRUCTION_SETS, or None for the best one of this processor.

    Raises:
        OSError: the file is no library, is truncated, was built from other sources than the installed ones or lacks a
            function, or this processor lacks the instruction set.
    """

    def __init__(self, file: Path, wanted: str | None = None) -> None:
        check_file(file)
        loaded = _load(file)
        sizes = (ctypes.c_int64 * 4)()
        _symbol(loaded, file, "tptt_sizes")(sizes)
        if tuple(sizes) != structs.SIZES:
            raise OSError(f"{file.name} has structs of other sizes than structs.py; {REBUILD}")
        best = _symbol(loaded, file, "tptt_best")()
        number = INSTRUCTION_SETS.index(wanted) if wanted in INSTRUCTION_SETS else best
        if wanted and (wanted not in INSTRUCTION_SETS or number > best):
            valid = ", ".join(INSTRUCTION_SETS[: best + 1])
            raise OSError(f"{SET_VARIABLE}={wanted} is not available on this processor; valid: {valid}")
        self.instructions = INSTRUCTION_SETS[number]
        self.forward = _bound(_symbol(loaded, file, "tptt_forward"), number)
        self.backward = _bound(_symbol(loaded, file, "tptt_backward"), number)
        self.step = _bound(_symbol(loaded, file, "tptt_step"), number)
        self.memory_step = _bound(_symbol(loaded, file, "tptt_memory_step"), number)
        self.fourier = _bound(_symbol(loaded, file, "tptt_fourier"), number)
        self.fourier_backward = _bound(_symbol(loaded, file, "tptt_fourier_backward"), number)


def _symbol(loaded: ctypes.CDLL, file: Path, name: str):
    try:
        return getattr(loaded, name)
    except AttributeError:
        raise OSError(f"{file.name} has no function {name}; {REBUILD}") from None


def _bound(function, number: int) -> Callable[[bytes], None]:
    function.restype = ctypes.c_int  # TpttStatus
    function.argtypes = (ctypes.c_int, ctypes.c_void_p)

    def call(packed: bytes) -> None:
        if function(number, packed):
            raise RuntimeError(OUT_OF_MEMORY)

    return call


def _load(file: Path) -> ctypes.CDLL:
    """The kernels name no OpenMP library, so that they share the one torch has loaded, and its threads. Where torch
    hides its own, the system's is loaded first."""
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        try:
            ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError:
            raise error from None
        return ctypes.CDLL(str(file))


@cache
def _attempt() -> Library | str:
    """The library, or why there is none. A library that is there and cannot be used is worth a warning, once."""
    if not FILE.exists():
        return "it was not built: `pip install` found no C++ compiler (g++ or clang++), or this is not Linux or macOS"
    try:
        return Library(FILE, os.environ.get(SET_VARIABLE))
    except OSError as error:
        reason = f"it could not be loaded: {error}"
    warnings.warn(f"tptt's native kernels are off and PyTorch does their work: {reason}", RuntimeWarning, stacklevel=3)
    return reason


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
