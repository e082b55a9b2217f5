"""The answers of an arm as a file that only grows: one JSON a line, each row once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .lines import complete_lines
from .rows import Row

KEY = ("table", "task", "length", "seed", "split")
Key = tuple[str, str, int, int, str]


def answers_file(results: Path, base: str, arm: str) -> Path:
    """Where the answers of an arm of a base lie.

    Raises:
        ValueError: The arm's name cannot be a file's.
    """
    if not arm or any(c in arm for c in "/\\\0") or arm.startswith("."):
        raise ValueError(f"{arm!r} cannot name a file: leave out slashes, and do not begin with a dot")
    return results / base / f"{arm}.jsonl"


def key_of(line: Mapping[str, Any]) -> Key:
    """Which row a line answers."""
    return tuple(line[name] for name in KEY)  # type: ignore[return-value]


def read_answers(file: Path) -> list[dict[str, Any]]:
    """The answers in ``file``, none where there is no file; of a row that stands there twice the last.

    A last line without its end is what a killed run was writing: it is left out.

    Raises:
        ValueError: Another line is no answer; the message names file and line.
    """
    found: dict[Key, dict[str, Any]] = {}
    for number, line in enumerate(complete_lines(file), 1):
        try:
            one = json.loads(line)
            found[key_of(one)] = one
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {file} is no answer: {error!r}") from error
    return list(found.values())


def answered(file: Path) -> set[Key]:
    """The rows that ``file`` answers."""
    return {key_of(line) for line in read_answers(file)}


def open_rows(rows: Iterable[Row], done: set[Key]) -> list[Row]:
    """The ``rows`` without an answer, so ordered that all cells fill evenly: the first row of each, then the second."""
    number: dict[tuple[str, str, int], int] = {}
    ordered = []
    for row in rows:
        cell = (row.table, row.task, row.length)
        number[cell] = number.get(cell, -1) + 1
        if row.key not in done:
            ordered.append((number[cell], row.length, row))
    ordered.sort(key=lambda entry: entry[:2])
    return [row for _, _, row in ordered]
