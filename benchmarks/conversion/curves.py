"""What `tptt train --dry-run` expects by: the curves of the default arm, see `tptt.estimate.expectations`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.answers import Mean
from benchmarks.runs import Row

from .arms import ARMS, HELD_OUT, TEST
from .bench import Bench
from .cells import UNDIVIDED, Cells, recall
from .report import CHOSEN, ratios

_MEASURES = {"recall_trained": 1, "recall_2x": 2, "recall_4x": 4}


def unseen(name: str, rows: Sequence[Row]) -> list[Mean]:
    """Recall of the format that the arm ``name`` held out of training."""
    found = [recall(x, TEST, 1, [ARMS[name].without or ""]) for x in rows]
    return [x for x in found if x is not None]


def _summed(values: Sequence[float]) -> list[float | None]:
    return [round(statistics.mean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else None]


def _point(bench: Bench, cells: Cells, tokens: int, rows: list[Row]) -> dict[str, Any]:
    point: dict[str, Any] = {"tokens": tokens, "seeds": len(rows), "answers": {}}
    for name, times in _MEASURES.items():
        means = [x for x in (recall(row, TEST, times) for row in rows) if x is not None]
        point[name] = _summed([x.share for x in means])
        point["answers"][name] = Mean.of_seeds(means, any(UNDIVIDED in x["parts"] for x in rows)).asked
    held = [unseen(name, cells.get(name, {}).get(tokens, [])) for name in HELD_OUT]
    if all(held):  # formats differ more than seeds do: one of them alone would mislead
        point["recall_unseen"] = _summed([x.share for each in held for x in each])
    point["perplexity_ratio"] = _summed(ratios(bench, rows, TEST, 1))
    return point


def curves(bench: Bench, cells: Cells, name: str) -> dict[str, Any]:
    """The curves of the base ``name``, with the machines and commits that its results themselves name."""
    by_tokens = sorted(cells.get(CHOSEN, {}).items())
    found = [row["provenance"] for _, rows in by_tokens for row in rows]

    def named(field: str) -> str:
        return ", ".join(dict.fromkeys(str(x.get(field, "not recorded")) for x in found))

    landed = dict.fromkeys(x["recorded_in"] for x in found if "recorded_in" in x)
    since = f", in the repository since {', '.join(landed)}" if landed else ""

    return {
        "base": {"name": f"the {name} base", "parameters": bench.of_itself()["parameters"]},
        "length": bench.length,
        "window": bench.window,
        "machine": named("machine"),
        "commit": named("commit") + since,
        "points": [_point(bench, cells, tokens, rows) for tokens, rows in by_tokens],
    }


def write_curves(path: Path, found: dict[str, Any]) -> None:
    """Write `curves` as JSON."""
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
