"""What a conversion is trained on and measured with: somebody's text, and recall rows made from it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tptt.data import Draws, DrillRows, Lexicon, TextSplit, load_text, pack_rows, stdlib_text, tokenize

from .rows import MixedRows
from .settings import TrainingSettings

_HELD_OUT = 200_000  # tokens that are measured at most


@dataclass(frozen=True)
class Corpus:
    """Token streams [n] of a text, one to train on and one held out, and the words of both.

    What is measured comes from the held-out part alone: text, filler, words and passages.
    """

    tokenizer: Any
    stream: torch.Tensor
    held_out: torch.Tensor
    lexicon: Lexicon
    held_lexicon: Lexicon

    @classmethod
    def of(
        cls, tokenizer, data: str | TextSplit | None, tokens: int, longest: int, seed: int = 0, column: str = "text"
    ) -> Corpus:
        """Read and tokenize.

        Args:
            data: what `tptt.data.load_text` reads, a `TextSplit`, or None for the running Python's own documentation.
            tokens: how many are trained on; about twice as many are read, where there are.
            longest: tokens of the longest row.
            seed: of the order in which documents are read.
            column: of a table that holds the text.

        Raises:
            FileNotFoundError: there is no such data.
            ValueError: the text is too short for one row, or has too few words.
        """
        if data is None:
            split = stdlib_text()
        elif isinstance(data, TextSplit):
            split = data
        else:
            split = load_text(data, column)
        documents = list(split.train)
        random.Random(seed).shuffle(documents)
        stream = tokenize(tokenizer, documents, max(2 * tokens, 8 * longest))
        held_out = tokenize(tokenizer, split.held_out, max(_HELD_OUT, 16 * longest))
        for part, ids in (("training", stream), ("held-out", held_out)):
            if len(ids) <= longest:
                raise ValueError(
                    f"the text's {part} part has {len(ids)} tokens, rows of {longest} need a longer one: "
                    "give more text or shorter rows"
                )
        lexicon = Lexicon.of(documents)
        try:
            held_lexicon = Lexicon.of(split.held_out)
        except ValueError:  # too short a held-out part to have words of its own
            held_lexicon = lexicon
        return cls(tokenizer, stream, held_out, lexicon, held_lexicon)

    def rows(self, settings: TrainingSettings, length: int, count: int) -> MixedRows:
        """``count`` training rows of ``length`` tokens."""
        return MixedRows(
            self.stream, self.taught(settings.recall_formats) if settings.recall_share else None, length, count, settings.seed, settings.recall_share,
            settings.facts, settings.answer_weight, settings.filler_weight,
        )  # fmt: skip

    def taught(self, formats: str | Sequence[str]) -> Draws:
        """Draws recall rows to train on."""
        return DrillRows(self.tokenizer, self.lexicon, self.stream, formats)

    def recall(self, formats: str | Sequence[str] = "all", facts: int = 8) -> Draws:
        """Draws held-out recall rows."""
        return DrillRows(self.tokenizer, self.held_lexicon, self.held_out, formats, facts)

    def text(self, length: int, tokens: int) -> torch.Tensor:
        """Held-out rows [N, length] of about ``tokens`` tokens in all; the same ones for every length that divides it."""
        most = len(self.held_out) // length * length
        return pack_rows(self.held_out[: max(length, min(tokens // length * length, most))], length)
