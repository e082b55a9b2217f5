"""Results that are kept as they come, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import is_current, provenance

Row = dict[str, Any]


def as_found(value: Any) -> Any:
    """``value`` as it is read back from a file: tuples are lists, all keys are text."""
    return json.loads(json.dumps(value))


class Runs:
    """Lines of JSON, one for each result, found again by what they are results of.

    A line holds its ``key`` (the settings that it is a result of), its ``provenance`` (see `benchmarks.record`), and
    what was measured.

    Args:
        file: of the lines.
        kind: benchmark that they belong to, a key of `benchmarks.record.SOURCES`.
        device: that results are measured on.
    """

    def __init__(self, file: Path, kind: str, device: str = "cpu") -> None:
        self.file, self.kind, self.device = file, kind, device

    def all(self) -> list[Row]:
        """Every line; another process may have added some since the last look."""
        if not self.file.exists():
            return []
        return [json.loads(x) for x in self.file.read_text(encoding="utf-8").splitlines()]

    def of(self, key: Row) -> list[Row]:
        """All results of ``key``, of whatever code, in the order in which they came."""
        key = as_found(key)
        return [x for x in self.all() if x["key"] == key]

    def current(self, key: Row) -> Row | None:
        """The result of ``key`` that was measured with the code that is here now."""
        return next((x for x in self.of(key) if is_current(self.kind, x["provenance"])), None)

    def latest(self, key: Row) -> Row | None:
        """`current`, or where there is none the last result of older code."""
        found = self.of(key)
        return self.current(key) or (found[-1] if found else None)

    def once(self, key: Row, make: Callable[[], Row]) -> Row:
        """`current`, made and written where it is not there yet."""
        if (found := self.current(key)) is not None:
            return found
        start = time.perf_counter()
        made = make()
        line = {"key": key, "provenance": provenance(self.kind, self.device)} | made
        line["seconds"] = round(time.perf_counter() - start, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        return as_found(line)
