"""What is measured of each arm."""

from __future__ import annotations

from dataclasses import dataclass

from tptt.data import FORMATS
from tptt.evaluation import RecallScore, perplexity, recall_accuracy
from tptt.train import Corpus

from .arms import Tick


@dataclass(frozen=True)
class Measures:
    """Perplexity and recall by length in tokens."""

    perplexity: dict[int, float]
    recall: dict[int, RecallScore]


def measured_lengths(length: int, corpus: Corpus, reach: int | None) -> tuple[int, ...]:
    """The training length, twice and four times it, as far as base (``reach`` tokens; None: no limit) and text go."""
    most = min(len(corpus.held_out) - 1, reach or 4 * length)
    return tuple(n for n in (length, 2 * length, 4 * length) if n <= most)


def measure(
    model, corpus: Corpus, lengths: tuple[int, ...], window: int, rows: int, formats, seed: int, tick: Tick
) -> Measures:
    """Perplexity on about 1.5 ``rows`` rows of the shortest length, the same tokens at each, and recall of ``formats`` on
    ``rows`` rows of each length; ticks once per length."""
    tokens = rows * lengths[0] * 3 // 2
    drills = corpus.recall(formats)
    scores, recall = {}, {}
    for length in lengths:
        scores[length] = perplexity(model, corpus.text(length, tokens))
        recall[length] = recall_accuracy(model, drills, length, window, rows, seed)
        tick(1)
    return Measures(scores, recall)


def recall_by_format(
    model, corpus: Corpus, length: int, window: int, rows: int, seed: int, tick: Tick
) -> dict[str, RecallScore | None]:
    """Recall of each of `tptt.data.FORMATS`; None where no fact of it fits into ``length`` tokens. Ticks once per format."""
    found: dict[str, RecallScore | None] = {}
    for name in FORMATS:
        try:
            found[name] = recall_accuracy(model, corpus.recall(name), length, window, rows, seed)
        except ValueError:
            found[name] = None
        tick(1)
    return found
