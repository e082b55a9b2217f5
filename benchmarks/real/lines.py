"""A file of JSON lines that only grows, and of which a killed run leaves whole lines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def complete_lines(file: Path) -> list[str]:
    """The lines of ``file``, none where there is no file. A last line without its end is what a killed run was writing:
    it is left out."""
    return file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Add ``line``, and return when it is on disk. What a killed run left of a line is cut off before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(line), ensure_ascii=False) + "\n"
    with file.open("ab+") as stream:
        _cut_unfinished(stream)
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _cut_unfinished(stream: Any) -> None:
    size = stream.seek(0, os.SEEK_END)
    if not size:
        return
    stream.seek(size - 1)
    if stream.read(1) == b"\n":
        return
    stream.seek(0)
    stream.truncate(stream.read().rfind(b"\n") + 1)
    stream.seek(0, os.SEEK_END)
