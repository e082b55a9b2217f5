"""Tables, plots and the planner's curves from the cells that are there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tptt.data import FORMATS as ALL_FORMATS
from tptt.evaluation import markdown_table
from tptt.quickstart.plots import new_figure, save

from .arms import ARMS, FORMATS, HELD_OUT, INGREDIENTS, RECORDS, REFERENCES
from .bench import LENGTHS, Bench

_BESIDE = "narrow"
"""What the ingredients are changed of; a base that is gone was tried with it alone."""

Cells = dict[str, dict[int, list[dict[str, Any]]]]  # arm -> tokens -> one result per seed that is there


def cells_of(bench: Bench, budgets: Sequence[int], seeds: Sequence[int]) -> Cells:
    """What has been trained so far with today's recipe."""
    found: Cells = {}
    for name, arm in ARMS.items():
        for tokens in budgets:
            lines = [bench.runs.find(bench.key(arm, tokens, s)) for s in seeds]
            if there := [x for x in lines if x is not None]:
                found.setdefault(name, {})[tokens] = there
    return found


def beyond(cell: dict[str, Any], times: int, formats: Sequence[str] = FORMATS) -> float:
    """Mean recall beyond the window over ``formats``, at ``times`` the training length."""
    return statistics.mean(cell["beyond"][str(times)][f] or 0.0 for f in formats)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _name(tokens: int) -> str:
    return f"{tokens / 2**20:g} M"


def _row(bench: Bench, name: str, tokens: int, cells: list[dict[str, Any]]) -> list[str]:
    base = bench.untrained()["perplexity"]["1"]
    without = ARMS[name].without
    return [
        name, _name(tokens), str(len(cells)),
        *(_mean([beyond(c, t, ARMS[name].formats) for c in cells]) for t in LENGTHS),
        _mean([beyond(c, 1, [without]) for c in cells]) if without else "",
        *(_mean([c["perplexity"][str(t)] / base for c in cells]) for t in (1, 4)),
        _mean([c["train_seconds"] / 60 for c in cells]),
    ]  # fmt: skip


def tables(bench: Bench, cells: Cells) -> str:
    """The section for one base."""
    base = bench.untrained()
    times = [f"{t}x" for t in LENGTHS]
    heads = ["arm", "tokens", "seeds", *times, "held out, 1x", "perplexity / base", "at 4x", "minutes"]

    def rows(arms) -> list[list[str]]:
        return [_row(bench, n, t, found) for n in arms for t, found in sorted(cells.get(n, {}).items())]

    parts = [
        f"Rows of {bench.length} tokens, W = {bench.window}, {base['parameters']:,} parameters. Recall beyond the window "
        f"({', '.join(FORMATS)}; all tokens of an answer right) at 1 to {LENGTHS[-1]} times the length of training rows; of "
        f"the base itself, with its whole context: {beyond(base, 1):.2f}. Perplexity of text over the base's at 1x. "
        "Minutes of training, beside other runs on the same machine.",
        markdown_table(heads, rows(REFERENCES)),
    ]
    if records := rows(RECORDS):
        parts += ["### Key-value records alone", markdown_table(heads, records)]
        if best := _largest(cells.get("default, records", {})):
            parts += [
                _by_distance(best[1]),
                f"By generation: {_generated(best[1], 'all')} answers right ({_name(best[0])}).",
            ]
    if held := rows(HELD_OUT):
        parts += ["### A format never trained", markdown_table(heads, held)]
    if parts_of := rows(INGREDIENTS):
        parts += ["### One ingredient changed", markdown_table(heads, parts_of)]
    parts.append(markdown_table(["arm", "what it is"], [[n, ARMS[n].what] for n in ARMS if n in cells]))
    chosen = "default" if "default" in cells else _BESIDE
    if best := _largest(cells.get(chosen, {})):
        tokens, found = best
        names = [*ALL_FORMATS]
        parts += [
            f"### By format and by branch, {chosen}, {_name(tokens)}",
            markdown_table(
                ["", *names],
                [["base", *(f"{base['beyond']['1'][f] or 0:.2f}" for f in names)],
                 [chosen, *(_mean([c["beyond"]["1"][f] or 0.0 for c in found]) for f in names)],
                 ["by generation", *(_generated(found, f) for f in names)]],
            ),
            markdown_table(
                ["recall beyond the window, all formats", *found[0]["branches"]],
                [["", *(_mean([c["branches"][b] or 0.0 for c in found]) for b in found[0]["branches"])]],
            ),
            f"Mean mu by layer: {', '.join(_mean([c['mu'][i] for c in found]) for i in range(len(found[0]['mu'])))}.",
            _by_distance(found),
        ]  # fmt: skip
    return "\n\n".join(parts)


def _by_distance(cells: list[dict[str, Any]]) -> str:
    """Shares right by length and distance, over formats and seeds together."""
    sums: dict[tuple[int, int], list[int]] = {}
    for times in LENGTHS:
        for bins in (x for c in cells for x in c["by_distance"][str(times)].values()):
            for distance, counts in bins.items():
                total = sums.setdefault((times, int(distance)), [0, 0])
                total[:] = [a + b for a, b in zip(total, counts, strict=True)]
    distances = sorted({d for _, d in sums})

    def share(times: int, distance: int) -> str:
        right, asked = sums.get((times, distance), (0, 0))
        return f"{right / asked:.2f}" if asked else ""

    rows = [[f"{t}x", *(share(t, d) for d in distances)] for t in LENGTHS]
    return markdown_table(["recall by distance in tokens", *(f"to {d}" for d in distances)], rows)


def _generated(cells: list[dict[str, Any]], name: str) -> str:
    counts = [c["generated"][name] for c in cells if name in c["generated"]]
    return f"{sum(r for r, _ in counts)} of {sum(n for _, n in counts)}" if counts else ""


def _largest(by_tokens: dict[int, Any]) -> tuple[int, Any] | None:
    return max(by_tokens.items()) if by_tokens else None


def plot(bench: Bench, cells: Cells, path: Path) -> Path:
    """Recall against tokens, against length, and perplexity by position."""
    figure, (budget, length, position) = new_figure(3)
    shown = [n for n in (*REFERENCES, _BESIDE) if n in cells]
    for name in shown:
        _line(budget, name, cells[name], lambda c: beyond(c, 1))
        tokens, found = _largest(cells[name])  # type: ignore[misc]
        length.plot(
            [t * bench.length for t in LENGTHS], [statistics.mean(beyond(c, t) for c in found) for t in LENGTHS],
            marker="o", label=f"{name}, {_name(tokens)}",
        )  # fmt: skip
        places = [int(p) for p in found[0]["by_position"]]
        position.plot(
            places, [statistics.mean(c["by_position"][str(p)] for c in found) for p in places], marker="o", label=name
        )
    for marker, (name, arm) in zip("x+1", HELD_OUT.items(), strict=True):
        if by_tokens := cells.get(name):
            shares = [statistics.mean(_unseen(name, found)) for found in by_tokens.values()]
            budget.scatter(
                list(by_tokens),
                shares,
                marker=marker,
                color="black",
                zorder=3,
                label=f"default, {arm.without} held out",
            )
    found = bench.untrained().get("by_position", {})
    if found:
        position.plot([int(p) for p in found], list(found.values()), color="black", linestyle=":", label="base")
    budget.set(
        xscale="log", xlabel="tokens of training", ylabel="share right", ylim=(-0.02, 1.02), title="recall beyond W"
    )
    length.set(
        xscale="log", xlabel="tokens of a row", ylabel="share right", ylim=(-0.02, 1.02), title="recall by length"
    )
    position.set(xscale="log", xlabel="position up to", ylabel="perplexity", title="text, by position")
    trained = sorted({t for n in shown for t in cells[n]})
    _ticks(budget, trained, [_name(t) for t in trained])
    _ticks(length, [t * bench.length for t in LENGTHS])
    _ticks(position, [bench.length // 8 * 2**i for i in range((8 * LENGTHS[-1]).bit_length())])
    for panel in (budget, length, position):
        panel.legend(fontsize=7)
    return save(figure, path)


def _unseen(name: str, found: Sequence[dict[str, Any]]) -> list[float]:
    """Recall of the format that the arm ``name`` held out."""
    return [beyond(c, 1, [ARMS[name].without or ""]) for c in found]


def _ticks(panel, values: Sequence[int], labels: Sequence[str] | None = None) -> None:
    """Marks at these values of a logarithmic axis alone."""
    panel.set_xticks(values, labels or [str(v) for v in values])
    panel.set_xticks([], minor=True)


def _line(
    panel, name: str, by_tokens: dict[int, list[dict[str, Any]]], value: Callable[[dict[str, Any]], float]
) -> None:
    tokens = sorted(by_tokens)
    each = [[value(c) for c in by_tokens[t]] for t in tokens]
    spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in each]
    panel.errorbar(tokens, [statistics.mean(v) for v in each], spread, marker="o", capsize=2, label=name)


def curves(bench: Bench, cells: Cells, name: str, where: str) -> dict[str, Any]:
    """What the planner reads (see `tptt.estimate.expectations`), of the base ``name``, measured on the machine ``where``."""
    base = bench.untrained()["perplexity"]["1"]

    def summed(values: Sequence[float]) -> list[float | None]:
        return [round(statistics.mean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else None]

    points = []
    for tokens, found in sorted(cells.get("default", {}).items()):
        point: dict[str, Any] = {"tokens": tokens, "seeds": len(found)}
        for key, times in (("recall_trained", 1), ("recall_2x", 2), ("recall_4x", 4)):
            point[key] = summed([beyond(c, times) for c in found])
        unseen = [_unseen(n, cells.get(n, {}).get(tokens, [])) for n in HELD_OUT]
        if all(unseen):  # formats differ more than seeds do: one of them alone would mislead
            point["recall_unseen"] = summed([x for each in unseen for x in each])
        point["perplexity_ratio"] = summed([c["perplexity"]["1"] / base for c in found])
        points.append(point)
    return {
        "base": {"name": f"the {name} base", "parameters": bench.untrained()["parameters"]}, "length": bench.length, "window": bench.window,
        "machine": where, "commit": where.rsplit(" ", 1)[-1], "points": points,
    }  # fmt: skip


def write_curves(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
