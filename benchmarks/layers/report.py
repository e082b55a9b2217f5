"""Table and plot of the measured choices of layers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.answers import Mean, Share
from benchmarks.plots import new_figure, save
from benchmarks.record import described, place
from benchmarks.runs import Row
from tptt.evaluation import markdown_table

from .bench import ARMS, LENGTHS, PART, Bench, Layers

COLORS = {"by KL": "#55a868", "evenly": "#4c72b0", "last": "#dd8452", "ranked last by KL": "#c44e52"}


@dataclass
class Point:
    """One number of whole layers that an arm chose: its choice for each seed, and what was measured.

    Args:
        sets: the layers chosen with each seed.
        rows: the result of each seed.
        base: the result of the base.
    """

    sets: list[Layers]
    rows: list[Row]
    base: Row

    @property
    def share(self) -> float:
        """Bytes of keys and values over the base's."""
        return statistics.mean(x["kv_bytes"] / self.base["kv_bytes"] for x in self.rows)

    def ratios(self, times: int) -> list[float]:
        """Perplexity at ``times`` the training length over the base's at the training length, for each seed."""
        return [x["perplexity"][str(times)] / self.base["perplexity"]["1"] for x in self.rows]

    def beyond(self, times: int) -> Mean:
        """Recall beyond the window at ``times`` the training length."""
        return Mean.of_seeds([beyond(x, times) for x in self.rows])


def beyond(row: Row, times: int) -> Mean:
    """Recall beyond the window of one result."""
    return Mean.of_formats([Share.read(row["beyond"][str(times)])])


def numbers(budgets: Sequence[float], total: int) -> list[int]:
    """How many of ``total`` layers each budget is."""
    return sorted({round(b * total) for b in budgets})


def points(bench: Bench, seeds: Sequence[int], budgets: Sequence[float]) -> dict[str, dict[int, Point]]:
    """arm -> number of whole layers -> its results."""
    found: dict[str, dict[int, Point]] = {}
    for arm, choose in ARMS.items():
        found[arm] = {}
        for n in numbers(budgets, len(bench.layers)):
            sets = [tuple(sorted(choose(tuple(bench.ranking(s)["order"]), n))) for s in seeds]
            rows = [bench.trained(s, w) for s, w in zip(seeds, sets, strict=True)]
            found[arm][n] = Point(sets, rows, bench.untrained())
    return found


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def report(bench: Bench, seeds: Sequence[int], budgets: Sequence[float]) -> str:
    """The section for RESULTS.md."""
    base, found = bench.untrained(), points(bench, seeds, budgets)
    command = f"python -m benchmarks.layers --tokens {bench.tokens} --seeds {' '.join(map(str, seeds))}"
    rows = [base, *(row for by_number in found.values() for x in by_number.values() for row in x.rows)]
    return "\n\n".join(
        [
            f"`{command}`",
            _where(bench, rows),
            f"Base `{bench.name}`, {bench.parameters / 1e6:.2f} M parameters, {len(bench.layers)} layers; "
            f"{bench.tokens:,} tokens of training in rows of {bench.length}, W = {bench.window}, {len(seeds)} seeds "
            f"(mean ± standard deviation; n answers in all, se their binomial standard error), {PART} part of the "
            f"held-out text. Keys and values: bytes held after {bench.length} tokens over the base's, measured on the "
            "caches.",
            _table(bench, found),
            "### KL to the base in nats per token before training, layers restored one after another",
            _ranking_table(bench, seeds),
            "![recall and perplexity against keys and values](../docs/layers.png)",
        ]
    )


def _where(bench: Bench, rows: Sequence[Row]) -> str:
    """Where ``rows`` were measured, a sentence for each place."""
    by_place: dict[str, list[Row]] = {}
    for found in (x["provenance"] for x in rows):
        by_place.setdefault(place(found), []).append(found)
    return "\n".join(f"Measured at {described(bench.runs.kind, *same)}." for same in by_place.values())


def _table(bench: Bench, found: dict[str, dict[int, Point]]) -> str:
    base = bench.untrained()
    heads = ["", "layers", "keys and values"]
    heads += [f"perplexity at {t * bench.length} / base at {bench.length}" for t in LENGTHS]
    heads += [f"recall beyond W at {t * bench.length}" for t in LENGTHS]
    rows: list[list[str]] = []
    for arm, by_number in found.items():
        for n, x in by_number.items():
            sets = " or ".join(str(list(s)) for s in dict.fromkeys(x.sets)) if n else "none"
            whole = {0: "window and memory everywhere", len(bench.layers): "whole everywhere, LoRA alone"}
            name = whole.get(n, arm)
            if name in whole.values() and any(name == row[0] for row in rows):
                continue  # the same in every arm
            ratios = [_mean(x.ratios(t)) for t in LENGTHS]
            rows.append([name, sets, f"{x.share:.1%}", *ratios, *(str(x.beyond(t)) for t in LENGTHS)])
    plain = [f"{base['perplexity'][str(t)] / base['perplexity']['1']:.2f}" for t in LENGTHS]
    rows.append(["base, untrained", "all", "100.0%", *plain, *(str(beyond(base, t)) for t in LENGTHS)])
    return markdown_table(heads, rows)


def _ranking_table(bench: Bench, seeds: Sequence[int]) -> str:
    lines = []
    for seed in seeds:
        ranking = bench.ranking(seed)
        order = " ".join(map(str, ranking["order"]))
        lines.append([f"seed {seed}", order, *(f"{k:.4f}" for k in ranking["kl"])])
    return markdown_table(["", "order", *(f"{n} whole" for n in range(len(bench.layers)))], lines)


def plot(bench: Bench, seeds: Sequence[int], budgets: Sequence[float], path: Path) -> Path:
    """Recall beyond the window at the training length and at the longest, and perplexity, against keys and values."""
    found = points(bench, seeds, budgets)
    figure, panels = new_figure(3)
    longest = LENGTHS[-1]
    kinds = (
        ("share right", f"recall beyond W at {bench.length}", lambda x: [beyond(y, 1).share for y in x.rows]),
        (
            "share right",
            f"recall beyond W at {longest * bench.length}",
            lambda x: [beyond(y, longest).share for y in x.rows],
        ),
        ("times the base's", f"perplexity at {bench.length}", lambda x: x.ratios(1)),
    )
    for panel, (unit, title, values) in zip(panels, kinds, strict=True):
        for arm, by_number in found.items():
            each = [values(p) for p in by_number.values()]
            spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in each]
            shares = [100 * p.share for p in by_number.values()]
            middle = [statistics.mean(v) for v in each]
            panel.errorbar(shares, middle, spread, marker="o", capsize=2, label=arm, color=COLORS[arm])
        panel.set(xlabel=f"keys and values held, % of the base's at {bench.length}", ylabel=unit, title=title)
    for panel in panels[:2]:
        panel.set_ylim(-0.02, 1.02)
    panels[0].legend(fontsize=8)
    return save(figure, path)
