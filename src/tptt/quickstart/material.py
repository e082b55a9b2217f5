"""Text and recall rows of a run."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from tptt.data import RecallRows, RecallVocabulary, load_text, pack_rows, stdlib_text, tokenize
from tptt.training.recall_trainer import MixedRows

from .options import QuickstartOptions


@dataclass(frozen=True)
class Material:
    """Training rows, held-out stream [n], what draws held-out recall rows, and the lengths that are measured."""

    train: MixedRows
    held_out: torch.Tensor
    recall: RecallRows
    lengths: tuple[int, ...]
    eval_rows: int

    def text_rows(self, length: int) -> torch.Tensor:
        """Held-out rows [N, length]; the same tokens for every length, about 1.5 ``eval_rows`` rows of the shortest."""
        tokens = max(length, self.eval_rows * self.lengths[0] * 3 // 2 // length * length)
        return pack_rows(self.held_out[:tokens], length)


def prepare(options: QuickstartOptions, tokenizer, length: int, reach: int | None) -> Material:
    """Read, tokenize and draw.

    Args:
        length: tokens of a training row; measured are it, twice and four times it.
        reach: most tokens the base can read at all; None is no limit.

    Raises:
        ValueError: the text is too short, or the tokenizer has no words for recall rows.
        FileNotFoundError: there is no such data.
    """
    split = stdlib_text() if options.data is None else load_text(options.data)
    documents = list(split.train)
    random.Random(options.seed).shuffle(documents)
    count = options.steps * options.rows
    stream = tokenize(tokenizer, documents, max(2 * count * length, 8 * length))
    held_out = tokenize(tokenizer, split.held_out, max(200_000, 16 * length))
    if len(held_out) <= length:
        raise ValueError(
            f"the text's held-out part has {len(held_out)} tokens, rows of {length} need a longer one: "
            "give more text or a smaller --length"
        )
    vocabulary = RecallVocabulary(tokenizer)
    train = MixedRows(stream, RecallRows(vocabulary, stream), length, count, options.seed)
    most = min(len(held_out) - 1, reach or 4 * length)
    lengths = tuple(n for n in (length, 2 * length, 4 * length) if n <= most)
    return Material(train, held_out, RecallRows(vocabulary, held_out, options.facts), lengths, options.eval_rows)
