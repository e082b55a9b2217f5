"""The recall rows of a quickstart: key-value records of single-token words, the one form the embedded base looks up.

A base that has read more of the world takes the formats of `tptt.data.FORMATS`, which `tptt train` mixes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tptt.data import FORMATS, RecallRows, RecallVocabulary, chosen_formats
from tptt.training import Material, MixedRows, TrainingSettings


@dataclass(frozen=True)
class RecordMaterial(Material):
    """A `Material` whose recall rows of all formats are records; a format asked for by name stays what it is."""

    def rows(self, settings: TrainingSettings, length: int, count: int) -> MixedRows:
        """``count`` training rows of ``length`` tokens."""
        rows = super().rows(replace(settings, recall_mix=0.0), length, count)
        rows.recall, rows.share = RecallRows(RecallVocabulary(self.tokenizer), self.stream), settings.recall_mix
        return rows

    def recall(self, formats: str | Sequence[str] = "all", facts: int = 8):
        """Draws held-out recall rows."""
        if set(chosen_formats(formats if isinstance(formats, str) else tuple(formats))) != set(FORMATS):
            return super().recall(formats, facts)
        return RecallRows(RecallVocabulary(self.tokenizer), self.held_out, 2 * facts)
