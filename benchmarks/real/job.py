"""What one run of *evaluate* works on, and how its answers are written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import provenance

from .arms import Arm
from .lines import append

KIND = "real"
"""Of `benchmarks.record.SOURCES`: the code that answers depend on."""


@dataclass(frozen=True)
class Job:
    """What one run of the command works on.

    Args:
        arm: Which arm.
        base: Name of the base.
        base_folder: The base as a plain folder.
        context: Tokens that the base was trained to read.
        prepared: The prepared folder.
        split: Of the rows.
        file: Where the answers go.
        ends_at: `time.monotonic` after which no row begins; None: none.
    """

    arm: Arm
    base: str
    base_folder: Path
    context: int
    prepared: Path
    split: str
    file: Path
    ends_at: float | None = None

    @property
    def late(self) -> bool:
        """Whether no further row may begin."""
        return self.ends_at is not None and time.monotonic() > self.ends_at

    def write(self, line: dict[str, Any], versions: dict[str, str] | None = None) -> None:
        """Add an answer with its origin."""
        origin = provenance(KIND) | (versions or {})
        append(self.file, {"base": self.base, "arm": self.arm.name, **line, "origin": origin})
