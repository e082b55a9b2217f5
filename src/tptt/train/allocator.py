"""How the process gets memory while it trains on a CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation, for the rest of the process. False: it cannot,
    because it is not glibc.

    By default glibc takes every large tensor from the system and gives it back, and the system clears it page by page.
    That shows in a training step with wide memories. It is for programs, not for library calls: `tptt train` calls it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30) and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
