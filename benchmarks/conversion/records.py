"""Recall rows of dense key-value records, as `tptt quickstart` trains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tptt.data import FORMATS, KeyValueRecall, RecallSampler, RecallVocabulary, chosen_formats
from tptt.train import Corpus, TrainingSettings

FACTS = tuple(2 * n for n in TrainingSettings.facts)
"""Facts of a training row: a record is short, so that a row takes twice as many."""


@dataclass(frozen=True)
class RecordCorpus(Corpus):
    """A `Corpus` whose recall rows of all formats are records; a format that is asked for by name stays what it is."""

    def taught(self, formats: str | Sequence[str]) -> RecallSampler:
        """RecallSampler recall rows to train on."""
        return (
            KeyValueRecall(RecallVocabulary(self.tokenizer), self.stream) if _all(formats) else super().taught(formats)
        )

    def recall(self, formats: str | Sequence[str] = "all", facts: int = 8) -> RecallSampler:
        """RecallSampler held-out recall rows, with twice as many records as ``facts``."""
        if not _all(formats):
            return super().recall(formats, facts)
        return KeyValueRecall(RecallVocabulary(self.tokenizer), self.held_out, 2 * facts)


def with_records(corpus: Corpus) -> RecordCorpus:
    """The same text with records for recall rows."""
    return RecordCorpus(**vars(corpus))


def _all(formats: str | Sequence[str]) -> bool:
    return set(chosen_formats(formats if isinstance(formats, str) else tuple(formats))) == set(FORMATS)
