"""Training rows that mix text with recall. Legend: T tokens of a row."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from tptt.data import IGNORE, RecallSampler


class MixedRows(Dataset):
    """``count`` rows: random cuts of a text, and recall rows evenly among them. Row i depends on ``seed`` and i alone.

    An item is ``input_ids``, ``labels``, ``loss_weights`` and ``stated``, each [T]. ``loss_weights[t]`` is the weight
    of predicting token t. ``stated[t]`` is 1 where a recall row states what it will ask for and 0 at its other
    tokens; it is -1 where the row repeats a fact, and in text, because nobody knows what text will be asked for.
    Hugging Face's Trainer can use the rows as well: it drops these two columns.

    Args:
        stream: [n] token ids of the text.
        recall: draws the recall rows; None is text alone.
        length: T.
        count: number of rows.
        seed: of what is drawn.
        recall_share: share of the rows that are recall rows, in [0, 1].
        facts: numbers of facts in a recall row; one of them is drawn for each row.
        answer_weight, filler_weight: weights of the values asked for and of all else in a recall row; text has 1.

    Raises:
        ValueError: the text is no longer than a row.
    """

    def __init__(
        self,
        stream: torch.Tensor,
        recall: RecallSampler | None,
        length: int,
        count: int,
        seed: int = 0,
        recall_share: float = 0.5,
        facts: Sequence[int] = (2, 4, 8, 16),
        answer_weight: float = 5.0,
        filler_weight: float = 0.1,
    ) -> None:
        if len(stream) <= length:
            raise ValueError(f"the text has {len(stream)} tokens, rows of {length} need a longer one")
        self.stream, self.recall, self.length, self.count, self.seed = stream, recall, length, count, seed
        self.share = 0.0 if recall is None else recall_share
        self.facts, self.answer_weight, self.filler_weight = tuple(facts), answer_weight, filler_weight

    def __len__(self) -> int:
        return self.count

    def is_recall(self, index: int) -> bool:
        """Whether row ``index`` is a recall row."""
        return int((index + 1) * self.share + 1e-9) > int(index * self.share + 1e-9)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        # torch's generator on the CPU takes 32 bits of a seed: both numbers have to get into them
        mixed = random.Random((self.seed << 40) + index).getrandbits(32)
        generator = torch.Generator().manual_seed(mixed)
        if self.is_recall(index):
            facts = self.facts[int(torch.randint(len(self.facts), (1,), generator=generator))]
            drawn = self.recall.draw(1, self.length, generator, facts)  # type: ignore[union-attr]
            ids = drawn.input_ids[0]
            weights = torch.where(drawn.answers[0] != IGNORE, self.answer_weight, self.filler_weight)
            stated = torch.where(drawn.answers[0] == IGNORE, drawn.stated[0].long(), -1)
        else:
            start = int(torch.randint(len(self.stream) - self.length, (1,), generator=generator))
            ids, weights = self.stream[start : start + self.length].long(), torch.ones(self.length)
            stated = torch.full_like(ids, -1)
        return {"input_ids": ids, "labels": ids, "loss_weights": weights, "stated": stated}
