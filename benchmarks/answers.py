"""Shares of recall answers with the number of answers and the standard error that they rest on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tptt.data import RecallSampler
from tptt.evaluation import RecallScore, recall_accuracy, recall_by_generation

LEAST = 500
"""Answers that a printed share of recall rests on, at least, for each seed."""
_DRAWS = 1000  # of rows, that one seed may take: no two seeds share one


@dataclass(frozen=True)
class Share:
    """``right`` of ``asked`` answers were right; ``asked`` None where only the share was recorded.

    Args:
        share: part of the answers that were right, in [0, 1]; None where nothing was asked.
        asked: number of answers.
    """

    share: float | None
    asked: int | None = None

    @classmethod
    def of(cls, right: int, asked: int) -> Share:
        return cls(right / asked if asked else None, asked)

    @classmethod
    def read(cls, found: Sequence[Any]) -> Share:
        """What `written` made."""
        return cls(*found)

    @property
    def written(self) -> list[float | int | None]:
        """As JSON: [share, asked]."""
        return [self.share, self.asked]

    @property
    def variance(self) -> float | None:
        """Variance of the share as a binomial proportion, p (1 - p) / n; None where the number is not known."""
        if self.share is None or not self.asked:
            return None
        return self.share * (1 - self.share) / self.asked


@dataclass(frozen=True)
class Mean:
    """The mean of shares.

    Args:
        share: the mean; shares of nothing asked count as 0. asked: answers in all; None where one of the shares does
        not know its number. error: standard error that the number of answers leaves, sqrt(sum of p (1 - p) / n) /
        number of shares; None likewise. spread: standard deviation over seeds; None for one seed.
    """

    share: float
    asked: int | None
    error: float | None
    spread: float | None = None

    @classmethod
    def of_formats(cls, shares: Iterable[Share]) -> Mean:
        """The mean over the formats of one model."""
        found = list(shares)
        variances = [s.variance for s in found]
        known = [v for v in variances if v is not None]
        complete = len(known) == len(found)
        return cls(
            statistics.mean(s.share or 0.0 for s in found),
            sum(s.asked or 0 for s in found) if complete else None,
            math.sqrt(sum(known)) / len(found) if complete else None,
        )

    @classmethod
    def of_seeds(cls, means: Sequence[Mean], shared: bool = False) -> Mean:
        """The mean over models that were trained with different seeds.

        Args:
            means: one for each model.
            shared: all models were asked the same answers, so that more models make the error no smaller.
        """
        errors, asked = [m.error for m in means], [m.asked for m in means]
        known = [e for e in errors if e is not None]
        complete = len(known) == len(means)
        numbers = [n or 0 for n in asked]
        error = statistics.mean(known or [0.0]) if shared else math.hypot(*known) / len(means)
        return cls(
            statistics.mean(m.share for m in means),
            (max(numbers) if shared else sum(numbers)) if complete else None,
            error if complete else None,
            statistics.stdev(m.share for m in means) if len(means) > 1 else None,
        )

    def __str__(self) -> str:
        """As ".96 ± .01 (n 1560, se .005)": mean, deviation over seeds, answers in all, their standard error."""
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        number = "n not recorded" if self.asked is None else f"n {self.asked}, se {self.error:.3f}"
        return f"{self.share:.2f}{spread} ({number})"


def beyond_counts(score: RecallScore) -> tuple[int, int]:
    """(right, asked) of the answers beyond the window."""
    return round((score.beyond or 0.0) * score.beyond_count), score.beyond_count


def draws_of(seed: int) -> Iterable[int]:
    """Seeds of the rows that are drawn for a model trained with ``seed``: other ones for every training seed."""
    return range(_DRAWS * seed, _DRAWS * (seed + 1))


@dataclass(frozen=True)
class Recall:
    """Recall of one format at one length.

    Args:
        beyond, inside: shares of the answers that were stated more than the window back, and not more.
        by_distance: [right, asked] by the largest distance of a bin in tokens, see `tptt.evaluation.RecallScore`.
    """

    beyond: Share
    inside: Share
    by_distance: dict[int, list[int]]


def recall_until(model, recall: RecallSampler, length: int, window: int, seed: int, least: int = LEAST) -> Recall:
    """Recall on rows that are drawn until ``least`` answers beyond the window were asked.

    Args:
        model, recall, length, window: as of `tptt.evaluation.recall_accuracy`.
        seed: of the model's training; rows are drawn by `draws_of`.
        least: answers that were stated more than ``window`` tokens back.

    Raises:
        RuntimeError: rows of this length do not ask as many.
    """
    beyond, inside = [0, 0], [0, 0]
    bins: dict[int, list[int]] = {}
    for number in draws_of(seed):
        score = recall_accuracy(model, recall, length, window, _rows(least), number)
        _add(beyond, *beyond_counts(score))
        _add(inside, round((score.inside or 0.0) * score.inside_count), score.inside_count)
        for distance, counts in score.by_distance.items():
            _add(bins.setdefault(distance, [0, 0]), *counts)
        if beyond[1] >= least:
            return Recall(Share.of(*beyond), Share.of(*inside), dict(sorted(bins.items())))
    raise _too_few(beyond[1], length, least)


def generated_until(model, recall: RecallSampler, length: int, window: int, seed: int, least: int = LEAST) -> Share:
    """The share of answers beyond the window that greedy decoding from a cache gives; arguments as of `recall_until`.

    Raises:
        RuntimeError: rows of this length do not ask as many.
    """
    total = [0, 0]
    for number in draws_of(seed):
        _add(total, *recall_by_generation(model, recall, length, window, _rows(least), number))
        if total[1] >= least:
            return Share.of(*total)
    raise _too_few(total[1], length, least)


def _rows(least: int) -> int:
    """Rows that are drawn at a time."""
    return max(1, min(8, least // 8))


def _add(total: list[int], right: int, asked: int) -> None:
    total[0] += right
    total[1] += asked


def _too_few(asked: int, length: int, least: int) -> RuntimeError:
    return RuntimeError(
        f"{_DRAWS} draws of {_rows(least)} rows of {length} tokens asked {asked} answers beyond the window, not {least}"
    )
