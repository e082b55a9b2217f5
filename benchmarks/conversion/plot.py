"""Recall against tokens and length, and perplexity by position, of the reported arms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plots import new_figure, save
from benchmarks.runs import Row

from .arms import ARMS, DEVELOPMENT, HELD_OUT, REFERENCES, TEST
from .bench import LENGTHS, Bench
from .cells import Cells, measured, part_in, recall
from .curves import unseen
from .report import CHOSEN, SMALL, largest, millions


def _shown(cells: Cells) -> dict[str, str]:
    """The arms that are drawn, and the part of the held-out text that each is drawn of."""
    found = {name: TEST for name in REFERENCES if name in cells}
    return found if CHOSEN in cells or SMALL not in cells else found | {SMALL: DEVELOPMENT}


def _share(row: Row, part: str, times: int = 1) -> float:
    found = recall(row, part, times)
    assert found is not None
    return found.share


def plot(bench: Bench, cells: Cells, path: Path) -> Path:
    """Draw what the tables of the test part say; returns ``path``."""
    figure, (budget, length, position) = new_figure(3)
    shown = _shown(cells)
    for name, part in shown.items():
        by_tokens = {t: rows for t, rows in sorted(cells[name].items()) if all(part_in(x, part) for x in rows)}
        if by_tokens:
            _by_budget(budget, name, by_tokens, part)
            _by_length(bench, length, name, by_tokens, part)
            _by_position(position, name, by_tokens, part)
    for marker, name in zip("x+1", HELD_OUT, strict=True):
        if by_tokens := cells.get(name):
            shares = [statistics.mean(m.share for m in unseen(name, rows)) for rows in by_tokens.values()]
            label = f"{CHOSEN}, {ARMS[name].without} held out"
            budget.scatter(list(by_tokens), shares, marker=marker, color="black", zorder=3, label=label)
    found = measured(bench.of_itself(), TEST)
    if found and (places := found.get("by_position")):
        position.plot([int(p) for p in places], list(places.values()), color="black", linestyle=":", label="base")
    share = {"ylabel": "share right", "ylim": (-0.02, 1.02), "xscale": "log"}
    budget.set(xlabel="tokens of training", title="recall beyond W", **share)
    length.set(xlabel="tokens of a row", title="recall by length", **share)
    position.set(xscale="log", xlabel="position up to", ylabel="perplexity", title="text, by position")
    trained = sorted({t for n in shown for t in cells[n]})
    _ticks(budget, trained, [millions(t) for t in trained])
    _ticks(length, [t * bench.length for t in LENGTHS])
    _ticks(position, [bench.length // 8 * 2**i for i in range((8 * LENGTHS[-1]).bit_length())])
    for panel in (budget, length, position):
        panel.legend(fontsize=7)
    return save(figure, path)


def _by_budget(panel, name: str, by_tokens: dict[int, list[Row]], part: str) -> None:
    each = [[_share(x, part) for x in rows] for rows in by_tokens.values()]
    spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in each]
    panel.errorbar(list(by_tokens), [statistics.mean(v) for v in each], spread, marker="o", capsize=2, label=name)


def _by_length(bench: Bench, panel, name: str, by_tokens: dict[int, list[Row]], part: str) -> None:
    tokens, rows = largest(by_tokens)  # type: ignore[misc]
    shares = [statistics.mean(_share(x, part, t) for x in rows) for t in LENGTHS]
    panel.plot([t * bench.length for t in LENGTHS], shares, marker="o", label=f"{name}, {millions(tokens)}")


def _by_position(panel, name: str, by_tokens: dict[int, list[Row]], part: str) -> None:
    _, rows = largest(by_tokens)  # type: ignore[misc]
    found = [measured(x, part) or {} for x in rows]
    places = list(found[0]["by_position"])
    values = [statistics.mean(x["by_position"][p] for x in found) for p in places]
    panel.plot([int(p) for p in places], values, marker="o", label=name)


def _ticks(panel, values: Sequence[int], labels: Sequence[str] | None = None) -> None:
    """Marks at these values of a logarithmic axis alone."""
    panel.set_xticks(values, labels or [str(v) for v in values])
    panel.set_xticks([], minor=True)
