"""Tables from the cells that are there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.answers import LEAST, Mean, Share
from benchmarks.runs import Row
from tptt.data import FORMATS as ALL_FORMATS
from tptt.evaluation import markdown_table

from .arms import ARMS, DEVELOPMENT, FORMATS, HELD_OUT, INGREDIENTS, RECORDS, REFERENCES, TEST
from .bench import LENGTHS, Bench
from .cells import UNDIVIDED, Cells, Legend, measured, of_base, part_in, recall, unclaimed

CHOSEN, SMALL = "default", "narrow"
"""The arm that is reported in detail; and the one that stands for it where a base was tried with that alone."""

_HOW = f"""
Recall beyond the window ({", ".join(FORMATS)}; all tokens of an answer right) at 1 to {LENGTHS[-1]} times the length
of training rows: the mean over formats and seeds, ± the standard deviation over seeds, n answers in all, and the
standard error se that this number of answers leaves (of a binomial proportion; at .00 and 1.00 it is 0, and fewer
than 3 / n are right or wrong with 95 % confidence). Perplexity of text over the base's at 1x. Minutes of training,
beside other runs on the same machine. The last columns say on which part of the held-out text a row was measured, and
where.

The text that is held out of training has a {DEVELOPMENT} part and a {TEST} part, which share no text. Arms are
compared on the {DEVELOPMENT} part; what is reported of the chosen ones is measured on the {TEST} part. "{UNDIVIDED}"
are older rows: they were measured on the whole held-out text, on the same answers for all seeds (n and se are those
of one seed), and the recipe was chosen on these answers too. Fewer than {LEAST} answers for a seed stand in older
rows alone.
"""


def mean(values: Sequence[float]) -> str:
    """The mean and, of several values, the standard deviation."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def millions(tokens: int) -> str:
    """A budget, in 2^20 tokens."""
    return f"{tokens / 2**20:g} M"


def largest(by_tokens: dict[int, list[Row]]) -> tuple[int, list[Row]] | None:
    """The cell of the largest budget, with the budget."""
    return max(by_tokens.items()) if by_tokens else None


def over_seeds(rows: Iterable[Row], of: Callable[[Row], Mean | None]) -> str:
    """The mean of a share over seeds, with both of its spreads; empty where it was not measured."""
    rows = list(rows)
    found = [m for m in map(of, rows) if m is not None]
    return str(Mean.of_seeds(found, any(UNDIVIDED in x["parts"] for x in rows))) if found else ""


def ratios(bench: Bench, rows: Iterable[Row], part: str, times: int) -> list[float]:
    """Perplexity at ``times`` the training length over the base's at the training length, on the same part of the
    text."""
    found = []
    for row in rows:
        there, base = measured(row, part), of_base(bench, part_in(row, part))
        if there is not None and base is not None:
            found.append(there["perplexity"][str(times)] / base["perplexity"]["1"])
    return found


class Report:
    """The section of one base in RESULTS.md.

    Args:
        bench: of the base.
        cells: `cells_of` it.
    """

    def __init__(self, bench: Bench, cells: Cells) -> None:
        self.bench, self.cells, self.legend = bench, cells, Legend(bench.runs.kind)

    def text(self) -> str:
        """All tables, and then where their rows were measured."""
        found = [self._head(), self._table("References", REFERENCES, TEST)]
        found += [self._table("Key-value records alone", RECORDS, TEST), *self._of_records()]
        found.append(self._table("A format never trained", HELD_OUT, TEST))
        if any(name in self.cells for name in INGREDIENTS):
            arms = (CHOSEN, *INGREDIENTS)
            found.append(self._table("One ingredient changed", arms, DEVELOPMENT))
        found.append(markdown_table(["arm", "what it is"], [[n, ARMS[n].what] for n in ARMS if n in self.cells]))
        found += self._of_chosen()
        found.append(f"### Where the rows were measured\n\n{self.legend.text()}")
        if lost := unclaimed(self.bench):
            found.append(f"{lost} results of this base belong to no arm of today's recipe and are not shown.")
        return "\n\n".join(x for x in found if x)

    def _head(self) -> str:
        bench = self.bench
        row = bench.of_itself()
        found = over_seeds([row], lambda x: recall(x, TEST, 1))
        return (
            f"Rows of {bench.length} tokens, W = {bench.window}. The base has {row['parameters']:,} parameters and "
            f"finds {found} with its whole context (measured: {self.legend.mark([row])}).\n\n{_HOW.strip()}"
        )

    def _table(self, title: str, arms: Iterable[str], part: str) -> str:
        rows = [self._row(n, t, found, part) for n in arms for t, found in sorted(self.cells.get(n, {}).items())]
        rows = [x for x in rows if x]
        lengths = [f"{t}x" for t in LENGTHS]
        heads = ["arm", "tokens", "seeds", *lengths, "held out, 1x", "perplexity / base", "at 4x", "minutes"]
        heads += ["part", "measured"]
        return f"### {title}\n\n{markdown_table(heads, rows)}" if rows else ""

    def _row(self, name: str, tokens: int, rows: list[Row], part: str) -> list[str]:
        rows = [x for x in rows if part_in(x, part)]
        if not rows:
            return []
        arm = ARMS[name]
        held = over_seeds(rows, lambda x: recall(x, part, 1, [arm.without])) if arm.without else ""
        return [
            name,
            millions(tokens),
            str(len(rows)),
            *(over_seeds(rows, lambda x, t=t: recall(x, part, t, arm.formats)) for t in LENGTHS),
            held,
            *(mean(ratios(self.bench, rows, part, t)) for t in (1, 4)),
            mean([x["train_seconds"] / 60 for x in rows]),
            " ".join(sorted({part_in(x, part) or "" for x in rows})),
            self.legend.mark(rows),
        ]

    def _of_records(self) -> list[str]:
        best = largest(self.cells.get("default, records", {}))
        if best is None:
            return []
        return [by_distance(best[1], TEST), f"By generation: {generated(best[1], TEST, 'all')} ({millions(best[0])})."]

    def _of_chosen(self) -> list[str]:
        chosen = CHOSEN if CHOSEN in self.cells else SMALL
        best = largest(self.cells.get(chosen, {}))
        if best is None:
            return []
        tokens, rows = best
        part = TEST if chosen == CHOSEN else DEVELOPMENT
        title = f"### By format and by branch, {chosen}, {millions(tokens)}, measured: {self.legend.mark(rows)}"
        branches = [[n, over_seeds(rows, lambda x, n=n: branch(x, n))] for n in rows[0]["branches"]]
        mus = ", ".join(mean([x["mu"][i] for x in rows]) for i in range(len(rows[0]["mu"])))
        return [
            title,
            self._by_format(rows, part, chosen),
            markdown_table(["branches", "recall beyond the window, all formats"], branches),
            f"Mean mu by layer: {mus}.",
            by_distance(rows, part),
        ]

    def _by_format(self, rows: list[Row], part: str, chosen: str) -> str:
        base = self.bench.of_itself()
        lines = []
        for name in ALL_FORMATS:
            both = (over_seeds(x, lambda y, name=name: recall(y, part, 1, [name])) for x in ([base], rows))
            lines.append([name, *both, generated(rows, part, name)])
        return markdown_table(["recall beyond the window at 1x", "base", chosen, "by generation"], lines)


def branch(row: Row, name: str) -> Mean:
    """Recall with the branches ``name``."""
    return Mean.of_formats([Share.read(row["branches"][name])])


def generated(rows: Iterable[Row], part: str, name: str) -> str:
    """The share of answers in the format ``name`` that decoding gave; empty where nothing was generated."""

    def of(row: Row) -> Mean | None:
        found = (measured(row, part) or {}).get("generated", {}).get(name)
        return None if found is None else Mean.of_formats([Share.read(found)])

    return over_seeds(rows, of)


def by_distance(rows: Iterable[Row], part: str) -> str:
    """Right of asked answers by length and distance, over formats and seeds together."""
    sums: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        found = measured(row, part)
        for times in LENGTHS if found else ():
            for bins in found["by_distance"][str(times)].values():
                for distance, counts in bins.items():
                    total = sums.setdefault((times, int(distance)), [0, 0])
                    total[:] = [a + b for a, b in zip(total, counts, strict=True)]
    distances = sorted({d for _, d in sums})

    def share(times: int, distance: int) -> str:
        right, asked = sums.get((times, distance), (0, 0))
        return f"{right / asked:.2f} ({asked})" if asked else ""

    lines = [[f"{t}x", *(share(t, d) for d in distances)] for t in LENGTHS]
    return markdown_table(["recall (answers) by distance in tokens", *(f"to {d}" for d in distances)], lines)
