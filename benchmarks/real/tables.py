"""Means, standard errors and counts of answers, as Markdown tables. Legend of a cell: mean ± standard error (count)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.record import is_current
from tptt.evaluation import markdown_table

from .job import KIND
from .judge import mean, standard_error
from .plan import EQUAL_BYTES_ROWS, EQUAL_BYTES_TASKS, RULER_ROWS, ruler_cells

MISSING = "missing"
OLD = "†"
"""Marks a cell with answers of older code."""
Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A mean with what it rests on.

    Args:
        mean: The mean.
        error: Its standard error; None of a single value.
        count: Number of values.
        old: Whether a value was measured with older code.
    """

    mean: float
    error: float | None
    count: int
    old: bool = False

    @classmethod
    def of(cls, lines: Lines, value: Callable[[Mapping[str, Any]], float | None]) -> Figure | None:
        """The mean of ``value`` over the ``lines`` that have one; None: no line has."""
        kept = [(found, line) for line in lines if (found := value(line)) is not None]
        if not kept:
            return None
        values = [found for found, _ in kept]
        old = not all(is_current(KIND, line["origin"]) for _, line in kept)
        return cls(mean(values), standard_error(values), len(values), old)

    def text(self, digits: int = 2) -> str:
        """As a cell of a table."""
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
        return f"{self.mean:.{digits}f}{error} ({self.count}){OLD if self.old else ''}"


def shown(figure: Figure | None, digits: int = 2) -> str:
    """A cell; where nothing was measured it says so."""
    return MISSING if figure is None else figure.text(digits)


def score_of(line: Mapping[str, Any]) -> float | None:
    return line.get("score")


def cell(lines: Lines, table: str, task: str | None = None, length: int | None = None) -> list[Mapping[str, Any]]:
    """The lines of a table's task and length, in the order of their seeds; None: of all."""
    found = [
        line
        for line in lines
        if line["table"] == table and task in (None, line["task"]) and length in (None, line["length"])
    ]
    return sorted(found, key=lambda line: line["seed"])


def tasks_at(length: int) -> list[str]:
    """RULER's tasks that have rows of that length."""
    return [one.task for one in ruler_cells("test") if one.length == length]


def ruler_cell(lines: Lines, task: str, length: int) -> list[Mapping[str, Any]]:
    """The lines that count in RULER's table."""
    return cell(lines, "ruler", task, length)[: RULER_ROWS[length]]


def ruler_figure(lines: Lines, length: int) -> Figure | None:
    """Mean over RULER's tasks at ``length`` of the tasks' means; its error is that of the tasks' errors.

    None where a task of that length has no answer: a mean over other tasks is not comparable.
    """
    figures = [Figure.of(ruler_cell(lines, task, length), score_of) for task in tasks_at(length)]
    if any(figure is None for figure in figures):
        return None
    return _mean_of([figure for figure in figures if figure is not None])


def _mean_of(figures: Sequence[Figure]) -> Figure:
    known = [figure.error for figure in figures if figure.error is not None]
    error = sum(x * x for x in known) ** 0.5 / len(figures) if len(known) == len(figures) else None
    count = sum(figure.count for figure in figures)
    return Figure(mean([f.mean for f in figures]), error, count, any(f.old for f in figures))


def ruler_means(arms: Mapping[str, Lines]) -> str:
    """RULER's mean over tasks, arm by length."""
    rows = [[name, *(shown(ruler_figure(lines, n)) for n in RULER_ROWS)] for name, lines in arms.items()]
    return markdown_table(["arm", *(f"{n:,}" for n in RULER_ROWS)], rows)


def ruler_tasks(arms: Mapping[str, Lines], length: int) -> str:
    """RULER's tasks at one length, arm by task."""
    rows = []
    for task in tasks_at(length):
        found = (Figure.of(ruler_cell(lines, task, length), score_of) for lines in arms.values())
        rows.append([f"`{task}`", *(shown(figure) for figure in found)])
    return markdown_table(["task", *arms], rows)


@dataclass(frozen=True)
class AtBytes:
    """An arm's place in the table at equal bytes.

    Args:
        score, held, peak, token: Mean score over the tasks; MB of cache when the question is asked; MB of peak during
            prefill; seconds per decoded token. None where a task has no answer.
    """

    score: Figure | None
    held: Figure | None
    peak: Figure | None
    token: Figure | None

    @classmethod
    def of(cls, lines: Lines, length: int) -> AtBytes:
        each = [cell(lines, "ruler", task, length)[:EQUAL_BYTES_ROWS] for task in EQUAL_BYTES_TASKS]
        figures = [Figure.of(rows, score_of) for rows in each]
        score = None if None in figures else _mean_of([f for f in figures if f is not None])
        rows = [line for part in each for line in part]
        return cls(
            score,
            Figure.of(rows, _mb("bytes_at_question")),
            Figure.of(rows, _mb("peak_bytes")),
            Figure.of(rows, _per_token),
        )


def _mb(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda line: None if line.get(name) is None else line[name] / 1e6


def _per_token(line: Mapping[str, Any]) -> float | None:
    """Seconds of a decoded token; None of an answer of one token, which the prefill computes."""
    more = line.get("tokens", 1) - 1
    return line["decode_seconds"] / more if more > 0 else None


def equal_bytes(arms: Mapping[str, Lines], length: int) -> str:
    """Accuracy and bytes of the arms at one length, largest cache first."""
    places = {name: AtBytes.of(lines, length) for name, lines in arms.items()}
    found = [(name, place) for name, place in places.items() if place.held is not None]
    found.sort(key=lambda entry: -(entry[1].held.mean if entry[1].held else 0))
    head = ["arm", "mean score of the four tasks", "MB at the question", "MB of peak in prefill", "seconds per token"]
    return markdown_table(
        head,
        [[name, shown(p.score), shown(p.held, 1), shown(p.peak, 0), shown(p.token, 3)] for name, p in found],
    )


def of_cells(arms: Mapping[str, Lines], cells: Iterable[tuple[str, str, int]], value=score_of, digits: int = 2) -> str:
    """Arm by (table, task, length)."""
    cells = list(cells)
    head = ["arm", *(f"{table} {task}, {length:,}" for table, task, length in cells)]
    rows = [
        [name, *(shown(Figure.of(cell(lines, *place), value), digits) for place in cells)]
        for name, lines in arms.items()
    ]
    return markdown_table(head, rows)


def nats_of(line: Mapping[str, Any]) -> float | None:
    return line.get("nats")


def seconds_of(lines: Iterable[Mapping[str, Any]]) -> float:
    """Seconds that the models computed for ``lines``."""
    return sum(line["prefill_seconds"] + line["decode_seconds"] for line in lines)
