"""Checks of the compiled library as a file, before any of its code is loaded."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from .sources import FOLDER, MARK, source_hash

REBUILD = "`pip install .` (or `pip install -e .`) in the repository of tptt builds it again"


def check_file(file: Path, sources: Path = FOLDER) -> None:
    """Raise OSError unless ``file`` is whole and was built from the C++ files in ``sources``."""
    content = file.read_bytes()
    if _is_truncated(content):
        raise OSError(f"{file.name} is truncated; {REBUILD}")
    marks = {mark.decode() for mark in re.findall(re.escape(MARK) + rb"([0-9a-f]{64})", content)}
    if not marks:
        raise OSError(f"{file.name} does not say which sources it was built from; {REBUILD}")
    try:
        wanted = source_hash(sources)
    except OSError as error:
        raise OSError(f"{file.name} cannot be checked: {error}; {REBUILD}") from None
    if marks != {wanted}:
        raise OSError(f"{file.name} was built from other sources than the installed ones; {REBUILD}")


def _is_truncated(content: bytes) -> bool:
    """Whether an ELF file ends before the segments that the loader maps. Loading it would kill the process (SIGBUS)
    instead of failing. Other formats, which the loader checks by itself, are never truncated here."""
    if content[:4] != b"\x7fELF" or content[4:5] != b"\x02":  # 64 bit
        return False
    order = "<" if content[5:6] == b"\x01" else ">"
    try:
        (table,) = struct.unpack_from(f"{order}Q", content, 32)
        size, count = struct.unpack_from(f"{order}HH", content, 54)
        for i in range(count):
            offset, _, _, length = struct.unpack_from(f"{order}4Q", content, table + i * size + 8)
            if offset + length > len(content):
                return True
    except struct.error:
        return True
    return False
