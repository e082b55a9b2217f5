"""The cells of the tables: which results belong into one, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks.answers import Mean, Share
from benchmarks.record import described, is_current, place
from benchmarks.runs import Row, as_found

from .arms import ARMS, FORMATS
from .bench import Bench

UNDIVIDED = "undivided"
"""Name of the part of older results: the whole held-out text, on which arms were chosen and reported alike."""
Cells = dict[str, dict[int, list[Row]]]  # arm -> tokens -> one result for each seed that is there


def cells_of(bench: Bench, budgets: Sequence[int], seeds: Sequence[int]) -> Cells:
    """What has been trained so far with today's recipe.

    A cell holds results of today's code where there are any, else older ones: the two are never averaged.
    """
    found: dict[str, list[Row]] = {}
    for row in bench.runs.all():
        found.setdefault(json.dumps(row["key"], sort_keys=True), []).append(row)
    cells: Cells = {}
    for name, arm in ARMS.items():
        for tokens in budgets:
            keys = [json.dumps(as_found(bench.key(arm, tokens, s)), sort_keys=True) for s in seeds]
            by_seed = [found[k] for k in keys if k in found]
            now = [x for rows in by_seed for x in rows if is_current(bench.runs.kind, x["provenance"])]
            if there := now or [rows[-1] for rows in by_seed]:
                cells.setdefault(name, {})[tokens] = there
    return cells


def unclaimed(bench: Bench) -> int:
    """Results of this base that no arm of today makes at any budget or seed: the tables do not show them."""
    known = set()
    rows = [x for x in bench.runs.all() if x["key"]["weights"] == bench.weights and x["key"].get("change") != "base"]
    for tokens, seed in {(x["key"]["settings"]["tokens"], x["key"]["settings"]["seed"]) for x in rows}:
        known |= {json.dumps(as_found(bench.key(arm, tokens, seed)), sort_keys=True) for arm in ARMS.values()}
    return sum(json.dumps(x["key"], sort_keys=True) not in known for x in rows)


def part_in(row: Row, part: str) -> str | None:
    """``part`` where ``row`` was measured on it, else `UNDIVIDED` where on that, else None."""
    return next((p for p in (part, UNDIVIDED) if p in row["parts"]), None)


def measured(row: Row, part: str) -> Row | None:
    """What was measured on ``part``, or on the undivided held-out text of older results."""
    there = part_in(row, part)
    return None if there is None else row["parts"][there]


def of_base(bench: Bench, part: str | None) -> Row | None:
    """What was measured of the base itself on ``part``, with today's code where there is such a result."""
    rows = [x for x in bench.runs.of(bench.base_key) if part in x["parts"]]
    now = [x for x in rows if is_current(bench.runs.kind, x["provenance"])]
    return (now or rows)[-1]["parts"][part] if rows else None


def recall(row: Row, part: str, times: int, formats: Sequence[str] = FORMATS) -> Mean | None:
    """Mean recall beyond the window over ``formats``, at ``times`` the training length."""
    found = measured(row, part)
    return None if found is None else Mean.of_formats(Share.read(found["recall"][str(times)][f]) for f in formats)


class Legend:
    """Letters that stand in the tables for where results come from; `text` says below them what each stands for.

    Args:
        kind: benchmark, a key of `benchmarks.record.SOURCES`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.groups: dict[str, list[Row]] = {}

    def mark(self, rows: Sequence[Row]) -> str:
        """The letters of ``rows``, and that their code is older than today's where it is."""
        letters = " ".join(sorted({self._letter(row) for row in rows}))
        older = any(not is_current(self.kind, row["provenance"]) for row in rows)
        return f"{letters} (older code)" if older else letters

    def _letter(self, row: Row) -> str:
        name = place(row["provenance"])
        self.groups.setdefault(name, []).append(row["provenance"])
        return _letters(list(self.groups).index(name))

    def text(self) -> str:
        """A list of what the letters stand for."""
        lines = (f"- {_letters(i)}: {described(self.kind, *found)}." for i, found in enumerate(self.groups.values()))
        return "\n".join(lines)


def _letters(number: int) -> str:
    """a to z, then aa to zz."""
    high, low = divmod(number, 26)
    return (chr(96 + high) if high else "") + chr(97 + low)
