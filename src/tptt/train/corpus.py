"""What a conversion is trained on and measured with: a text, and recall rows made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tptt.data import (
    Documents,
    Lexicon,
    RecallSampler,
    RecallTask,
    TextSplit,
    TokenizedText,
    load_text,
    pack_rows,
    stdlib_text,
    tokenize_once,
)
from tptt.data.documents import shuffled

from .rows import MixedRows
from .settings import TrainingSettings

_HELD_OUT = 200_000  # tokens that are measured at most


@dataclass(frozen=True)
class Corpus:
    """A text in two parts that share no document: one to train on and one held out.

    All that is measured comes from the held-out part: rows of text, and the filler, words and passages of recall rows.

    Args:
        tokenizer: of the base.
        stream: [n] token ids (int32, memory-mapped) to train on.
        held_out: [m] token ids (int64) to measure on.
        lexicon: words and passages of the part to train on.
        held_lexicon: words and passages of the held-out part.
    """

    tokenizer: Any
    stream: torch.Tensor
    held_out: torch.Tensor
    lexicon: Lexicon
    held_lexicon: Lexicon

    @classmethod
    def of(
        cls,
        tokenizer,
        data: str | TextSplit | None,
        tokens: int,
        longest: int,
        seed: int = 0,
        column: str = "text",
        config_name: str | None = None,
        split: str | None = None,
    ) -> Corpus:
        """Read a text as far as a run needs it, and tokenize what was not tokenized before (`tptt.data.tokenize_once`).

        Args:
            tokenizer: of the base.
            data: what `tptt.data.load_text` reads, a `TextSplit`, or None for the running Python's own documentation.
            tokens: how many are trained on; about twice as many are read, where there are.
            longest: tokens of the longest row.
            seed: decides in which order documents are read.
            column, config_name, split: of a table or data set (`tptt.data.load_text`).

        Raises:
            FileNotFoundError: there is no such data.
            ValueError: a part of the text is too short for one row, or has too few words.
        """
        if data is None:
            data = stdlib_text()
        elif not isinstance(data, TextSplit):
            data = load_text(data, column, config_name, split)
        train = _read(tokenizer, shuffled(data.train, seed), max(2 * tokens, 8 * longest), longest, "training")
        held_out = _read(tokenizer, data.held_out, max(_HELD_OUT, 16 * longest), longest, "held-out")
        words, held_words = _words(train, "training"), _words(held_out, "held-out")
        return cls(tokenizer, train.ids, held_out.ids.long(), words, held_words)

    def rows(self, settings: TrainingSettings, length: int, count: int) -> MixedRows:
        """``count`` training rows of ``length`` tokens."""
        recall = self.taught(settings.recall_formats) if settings.recall_share else None
        return MixedRows(
            self.stream,
            recall,
            length,
            count,
            settings.seed,
            settings.recall_share,
            settings.facts,
            settings.answer_weight,
            settings.filler_weight,
        )

    def taught(self, formats: str | Sequence[str]) -> RecallSampler:
        """Draws recall rows to train on."""
        return RecallTask(self.tokenizer, self.lexicon, self.stream, formats)

    def recall(self, formats: str | Sequence[str] = "all", facts: int = 8) -> RecallSampler:
        """Draws held-out recall rows."""
        return RecallTask(self.tokenizer, self.held_lexicon, self.held_out, formats, facts)

    def text(self, length: int, tokens: int) -> torch.Tensor:
        """Held-out rows [N, length] of about ``tokens`` tokens in all, for all lengths that divide it the same."""
        most = len(self.held_out) // length * length
        return pack_rows(self.held_out[: max(length, min(tokens // length * length, most))], length)


def _read(tokenizer, documents: Sequence[str] | Documents, most: int, longest: int, part: str) -> TokenizedText:
    found = tokenize_once(tokenizer, documents, most, f"tokenizing the {part} part")
    if len(found.ids) <= longest:
        raise ValueError(
            f"the text's {part} part has {len(found.ids)} tokens, rows of {longest} need a longer one: "
            "give more text or shorter rows"
        )
    return found


def _words(text: TokenizedText, part: str) -> Lexicon:
    try:
        return Lexicon.of([text.beginning])
    except ValueError as error:
        raise ValueError(f"the text's {part} part is too short: {error}; give more text") from error
