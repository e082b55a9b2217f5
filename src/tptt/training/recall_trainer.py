"""Training rows that mix text with recall, and a Trainer that weights what is asked for.

Legend: N rows, T tokens of a row.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer

from tptt.data import IGNORE, RecallRows


class MixedRows(Dataset):
    """``count`` rows: random cuts of a text, and recall rows, in random order; all drawn once from ``seed``.

    An item is ``input_ids``, ``labels`` and ``loss_weights``, each [T]; ``loss_weights[t]`` is that of predicting
    token t. The plain Trainer can use the rows as well (it drops the weights).

    Args:
        stream: [n] token ids of the text.
        recall: draws the recall rows; None is text alone.
        length: T.
        recall_share: part of the rows that are recall rows, in [0, 1].
        facts: facts of a recall row, one of these drawn for each.
        answer_weight, filler_weight: of the asked values and of all else in a recall row; text has weight 1.

    Raises:
        ValueError: the text is no longer than a row.
    """

    def __init__(
        self, stream: torch.Tensor, recall: RecallRows | None, length: int, count: int, seed: int = 0,
        recall_share: float = 0.375, facts: tuple[int, ...] = (4, 8, 16, 32),
        answer_weight: float = 5.0, filler_weight: float = 0.1,
    ) -> None:  # fmt: skip
        if len(stream) <= length:
            raise ValueError(f"the text has {len(stream)} tokens, rows of {length} need a longer one")
        generator = torch.Generator().manual_seed(seed)
        asked = 0 if recall is None else round(count * recall_share)
        starts = torch.randint(len(stream) - length, (count - asked,), generator=generator).tolist()
        ids = [stream[s : s + length] for s in starts]
        weights = [torch.ones(length)] * len(ids)
        for number in torch.randint(len(facts), (asked,), generator=generator).tolist():
            drawn = recall.draw(1, length, generator, facts[number])  # type: ignore[union-attr]
            ids.append(drawn.input_ids[0])
            weights.append(torch.where(drawn.answers[0] != IGNORE, answer_weight, filler_weight))
        order = torch.randperm(count, generator=generator)
        self.input_ids, self.loss_weights = torch.stack(ids)[order], torch.stack(weights)[order]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.input_ids[index]
        return {"input_ids": ids, "labels": ids, "loss_weights": self.loss_weights[index]}


class RecallTrainer(Trainer):
    """Trainer whose rows may carry ``loss_weights`` [N, T]; set ``remove_unused_columns=False``.

    The loss is the weighted cross entropy per target in nats; without weights it is Trainer's own.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "loss_weights" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        outputs = model(**inputs, use_cache=False)
        losses = F.cross_entropy(
            outputs.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
        )
        # as Trainer counts: over all accumulated batches where it says so, else over this one
        count = (labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        loss = (losses * weights[:, 1:].flatten()).sum() / count
        return (loss, outputs) if return_outputs else loss
