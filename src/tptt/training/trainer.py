"""Trainer with weighted targets, the base as a teacher, and rows longer than fits at once.

Legend: B rows, T tokens of a row.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from transformers import DynamicCache, Trainer

from tptt.data import IGNORE
from tptt.surgery import as_base, attention_outputs, memories

from .losses import attention_distance, kl_from_base, token_losses


class ConversionTrainer(Trainer):
    """Trainer whose rows may carry ``loss_weights`` [B, T]; set ``remove_unused_columns=False``.

    The loss is the weighted cross entropy per target in nats; without weights it is Trainer's own. The teacher of
    ``distill`` and ``align`` is the base inside the model: memory off, LoRA off, whole context.

    Args:
        distill: weight of KL(base || model) in nats per token.
        align: weight of the distance between the layers' attention outputs and the base's, beyond the window.
        carry: pieces a row is cut into. The cache, its state included, goes on from piece to piece; gradients end there
            (truncated backpropagation), so that a row needs the memory of one piece.
        The other arguments are Trainer's.

    Raises:
        ValueError: ``distill`` or ``align`` with a model without a memory.
    """

    def __init__(self, *args, distill: float = 0.0, align: float = 0.0, carry: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.distill, self.align, self.carry = distill, align, carry
        found = memories(self.model)
        if (distill or align) and not found:
            raise ValueError("distill and align need a model with a memory: its base is the teacher")
        self.window = (found[0].config.max_self_attn_length if found else None) or 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.carry == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        pieces = [dict(zip(inputs, part, strict=True)) for part in zip(*(_cut(x, self.carry) for x in inputs.values()), strict=True)]
        if num_items_in_batch is None:
            num_items_in_batch = sum(int((p["labels"] != IGNORE).sum()) for p in pieces)
        cache, total = DynamicCache(), 0.0
        for piece in pieces:
            total = total + super().training_step(model, piece | {"past_key_values": cache}, num_items_in_batch)
            _end_gradients(cache)
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "loss_weights" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        # as Trainer counts: over all accumulated batches where it says so, else over this one
        count = (labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        teaches = model.training and (self.distill or self.align)
        base, base_attention = self._taught(model, inputs) if teaches else (None, [])
        watched = attention_outputs(model) if teaches and self.align else nullcontext([])
        with watched as attention:
            outputs = model(**inputs, use_cache="past_key_values" in inputs)
        loss = (token_losses(outputs.logits, labels) * weights[:, 1:]).sum() / count
        if base is not None and self.distill:
            loss = loss + self.distill * kl_from_base(outputs.logits, base) / count
        if teaches and self.align:
            share = labels[:, 1:].numel() / count
            loss = loss + self.align * share * attention_distance(attention, base_attention, self.window)
        return (loss, outputs) if return_outputs else loss

    def _taught(self, model, inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's logits on the whole context, and what its layers' attention gives out."""
        ids = {k: v for k, v in inputs.items() if k != "past_key_values"}
        with torch.no_grad(), _not_training(model), as_base(model), attention_outputs(model) as attention:
            logits = model(**ids, use_cache=False).logits
        return logits, attention


@contextmanager
def _not_training(model):
    model.eval()
    try:
        yield
    finally:
        model.train()


def _cut(x: torch.Tensor, pieces: int):
    if x.shape[1] % pieces:
        raise ValueError(f"rows of {x.shape[1]} tokens cannot be carried in {pieces} pieces of equal length")
    return x.split(x.shape[1] // pieces, 1)


def _end_gradients(cache) -> None:
    """The next piece reads keys, values and states as they are."""
    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                setattr(layer, name, value.detach())
