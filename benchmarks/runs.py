"""Results that are kept as they come, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Runs:
    """Lines of JSON, one per result, found again by what they are results of."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def all(self) -> list[dict[str, Any]]:
        """Every line; another process may have added some since the last look."""
        return [json.loads(x) for x in self.file.read_text().splitlines()] if self.file.exists() else []

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The result of ``key``, where it is there."""
        key = json.loads(json.dumps(key))  # as it is found in the file: tuples are lists
        return next((x for x in self.all() if x["key"] == key), None)

    def once(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of ``key``, made and written where it is not there yet."""
        if (found := self.find(key)) is not None:
            return found
        start = time.perf_counter()
        line = {"key": key} | make() | {"seconds": round(time.perf_counter() - start, 1)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        return json.loads(json.dumps(line))  # as it is found later: all keys are text
