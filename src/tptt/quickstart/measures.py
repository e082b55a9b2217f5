"""What is measured of each arm."""

from __future__ import annotations

from dataclasses import dataclass

from tptt.data import FORMATS
from tptt.evaluation import RecallScore, perplexity, recall_accuracy
from tptt.progress import report_progress
from tptt.train import Corpus


@dataclass(frozen=True)
class Measures:
    """Perplexity and recall by length in tokens."""

    perplexity: dict[int, float]
    recall: dict[int, RecallScore]


def measured_lengths(seq_len: int, corpus: Corpus, reach: int | None) -> tuple[int, ...]:
    """The training length, twice and four times it, as far as base (``reach`` tokens; None: no limit) and text go."""
    most = min(len(corpus.held_out) - 1, reach or 4 * seq_len)
    return tuple(n for n in (seq_len, 2 * seq_len, 4 * seq_len) if n <= most)


def measure(model, corpus: Corpus, lengths: tuple[int, ...], window: int, rows: int, formats, seed: int) -> Measures:
    """Perplexity and recall at each length.

    Perplexity is taken on the same text at each, as long as 1.5 ``rows`` rows of the shortest length; recall of
    ``formats`` on ``rows`` rows.
    """
    tokens = rows * lengths[0] * 3 // 2
    sampler = corpus.recall(formats)
    scores, recall = {}, {}
    with report_progress("measuring perplexity and recall", len(lengths), "lengths") as progress:
        for length in lengths:
            scores[length] = perplexity(model, corpus.text(length, tokens))
            recall[length] = recall_accuracy(model, sampler, length, window, rows, seed)
            progress.advance()
    return Measures(scores, recall)


def recall_by_format(
    model, corpus: Corpus, length: int, window: int, rows: int, seed: int
) -> dict[str, RecallScore | None]:
    """Recall of each of `tptt.data.FORMATS`; None where no fact of it fits into ``length`` tokens."""
    found: dict[str, RecallScore | None] = {}
    with report_progress("measuring recall by format", len(FORMATS), "formats") as progress:
        for name in FORMATS:
            try:
                found[name] = recall_accuracy(model, corpus.recall(name), length, window, rows, seed)
            except ValueError:
                found[name] = None
            progress.advance()
    return found
