"""Peak memory of a piece of work, as the operating system counts it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Peak:
    """``bytes``: by how much the process's resident memory rose at most; None where that cannot be measured."""

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the work within: the highest resident memory (Linux: VmHWM, reset before) less that at the beginning.

    It counts what the work keeps (a cache) and what it holds in between (activations), in pages of the whole process.
    Free memory of the C library is given back first, so that what an earlier piece of work left does not hide this one.
    Elsewhere than on Linux nothing is measured.
    """
    found = Peak()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5", encoding="ascii")
        before = _resident("VmRSS")
    except (OSError, AttributeError, TypeError):
        yield found
        return
    yield found
    found.bytes = max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    """A line of the process's status, in bytes."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{_STATUS} has no {name}")
