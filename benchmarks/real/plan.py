"""Which cells are prepared, with how many rows, and which of their rows stand in which table."""

from __future__ import annotations

from .build import Cell
from .ruler import TASKS

FAR_TASKS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "vt", "cwe", "qa_1")
"""RULER's tasks at 16,384 and 32,768 tokens: two needles, multi-key, variable tracking, words, one question."""
EQUAL_BYTES_TASKS = ("niah_single_2", "niah_multikey_1", "vt", "qa_1")
EQUAL_BYTES_LENGTHS = (4096, 8192)
EQUAL_BYTES_ROWS = 10
"""Of each cell in the tables at equal bytes: its first rows, also where RULER's table takes fewer."""
RULER_ROWS = {1024: 20, 2048: 20, 4096: 20, 8192: 6, 16384: 5, 32768: 5}
"""Test rows of a cell in RULER's table, by length: its first rows."""
_RULER_DEV = {1024: 10, 2048: 10, 4096: 10, 8192: 10, 16384: 3, 32768: 3}
_FAR = 16384
PASSAGE_ROWS: dict[tuple[str, str], dict[int, tuple[int, int]]] = {
    ("squad", "cut"): {512: (100, 40)},
    ("hotpot", "distractors"): {2048: (20, 10), 4096: (20, 10), 8192: (20, 10), 16384: (8, 3)},
    ("skills", "squad"): {512: (100, 40)},
    ("skills", "last_words"): {512: (200, 60)},
}
"""Test and development rows of the other tables by (table, task) and length."""


def ruler_cells(split: str) -> list[Cell]:
    """The cells of RULER's tasks; a cell of the equal-bytes tables has the rows of both."""
    found = []
    for length, count in (RULER_ROWS if split == "test" else _RULER_DEV).items():
        for task in TASKS if length < _FAR else FAR_TASKS:
            equal = split == "test" and task in EQUAL_BYTES_TASKS and length in EQUAL_BYTES_LENGTHS
            found.append(Cell("ruler", task, length, split, max(count, EQUAL_BYTES_ROWS) if equal else count))
    return found


def passage_cells(split: str) -> list[Cell]:
    """The cells of the other tables."""
    place = ("test", "dev").index(split)
    return [
        Cell(table, task, length, split, counts[place])
        for (table, task), lengths in PASSAGE_ROWS.items()
        for length, counts in lengths.items()
    ]


def plan() -> list[Cell]:
    """Every cell, development rows first and short rows first."""
    found = [cell for split in ("dev", "test") for cell in (*ruler_cells(split), *passage_cells(split))]
    return sorted(found, key=lambda cell: (cell.split, cell.length))
