"""Trainer with weighted targets, supervised write gates, the base as a teacher, and rows longer than fits at once.

Legend: B rows, T tokens of a row.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from transformers import Cache, DynamicCache, Trainer

from tptt.data import IGNORE
from tptt.evaluation.kl import kl_from_base
from tptt.evaluation.perplexity import next_token_losses
from tptt.hf import as_base, attention_outputs, memories, write_gates

from .losses import attention_distance, told_from_far, write_loss
from .optim import parameter_groups


class ConversionTrainer(Trainer):
    """Trainer whose rows may carry ``loss_weights`` and ``stated`` [B, T] (`MixedRows`); set ``remove_unused_columns=False``.

    The loss is the weighted cross entropy per target in nats; without weights it is Trainer's own. The teacher of
    ``kl_weight``, ``attention_transfer_weight`` and ``long_context_weight`` is the base inside the model: memory off, LoRA off, whole context.

    Args:
        write_gate_weight: weight of the learned write gates' cross entropy (`write_loss`) where rows say what they state.
        fact_weight: in that, weight of what they state over that of the rest.
        write_gate_steps: optimizer steps after which ``write_gate_weight`` falls, by all of it in as many again; None: it stays.
        write_gate_floor: part of ``write_gate_weight`` below which it does not fall.
        kl_weight: weight of KL(base || model) in nats per token.
        attention_transfer_weight: weight of the distance between the layers' attention outputs and the base's, beyond the window.
        long_context_weight: what a nat adds to the weight of a token of text by which the base predicts it better from its whole context
            than from the window (`told_from_far`). Rows that state something keep their weights.
        tbptt_chunks: pieces a row is cut into. The cache, its state included, goes on from piece to piece; gradients end there
            (truncated backpropagation), so that a row needs the memory of one piece. The first token of a piece is
            predicted by none. The teacher reads the pieces with a cache of its own, which holds the whole row.
        rates: learning rates of LoRA and of the memory, for AdamW, as `parameter_groups` takes them; None leaves the optimizer
            to Trainer. Made when Trainer asks for it, because FSDP has no use for one that was made before.
        The other arguments are Trainer's.

    Raises:
        ValueError: ``kl_weight`` or ``attention_transfer_weight`` with a model without a memory, ``long_context_weight`` with one that has no window;
            ``tbptt_chunks`` with gradient checkpointing, which takes the cache away; a row that cannot be cut into pieces of one
            length, or that ``attention_transfer_weight`` finds no longer than the window.
    """

    def __init__(
        self, *args, write_gate_weight: float = 0.0, fact_weight: float = 1.0, write_gate_steps: int | None = None, write_gate_floor: float = 0.0, kl_weight: float = 0.0, attention_transfer_weight: float = 0.0, long_context_weight: float = 0.0, tbptt_chunks: int = 1, rates: tuple[float | None, float | None] | None = None,
        **kwargs,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.write_gate_weight, self.fact_weight = write_gate_weight, fact_weight
        self.write_gate_steps, self.write_gate_floor = write_gate_steps, write_gate_floor
        self.kl_weight, self.attention_transfer_weight, self.long_context_weight, self.tbptt_chunks, self.rates = (
            kl_weight,
            attention_transfer_weight,
            long_context_weight,
            tbptt_chunks,
            rates,
        )
        found = memories(self.model)
        if (kl_weight or attention_transfer_weight) and not found:
            raise ValueError(
                "kl_weight and attention_transfer_weight need a model with a memory: its base is the teacher"
            )
        if tbptt_chunks > 1 and self.args.gradient_checkpointing:
            raise ValueError("tbptt_chunks needs the cache that gradient_checkpointing takes away: use one of them")
        self.window = (found[0].config.max_self_attn_length if found else None) or 0
        if long_context_weight and not self.window:
            raise ValueError(
                "long_context_weight compares the base's whole context with the window: set max_self_attn_length"
            )

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.rates is not None:
            self.optimizer = torch.optim.AdamW(parameter_groups(self.model if model is None else model, *self.rates))
        return super().create_optimizer(model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.long_context_weight:
            inputs = self._far_weighted(model, self._prepare_inputs(inputs))
        if self.tbptt_chunks == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        cut = [_cut(x, self.tbptt_chunks) for x in inputs.values()]
        pieces = [dict(zip(inputs, part, strict=True)) for part in zip(*cut, strict=True)]
        if num_items_in_batch is None:
            num_items_in_batch = _targets(inputs["labels"])
        names = (
            ["past_key_values", "base_cache"]
            if self.kl_weight or self.attention_transfer_weight
            else ["past_key_values"]
        )
        config = self.model.config.get_text_config(decoder=True)
        caches = {name: DynamicCache(config=config) for name in names}
        total = 0.0
        for piece in pieces:
            total = total + super().training_step(model, piece | caches, num_items_in_batch)
            _end_gradients(caches["past_key_values"])
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        stated = inputs.pop("stated", None)
        if "loss_weights" not in inputs and not (
            self.kl_weight or self.attention_transfer_weight or self.tbptt_chunks > 1
        ):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights", None)
        weights = torch.ones_like(labels) if weights is None else weights
        cache, base_cache = inputs.pop("past_key_values", None), inputs.pop("base_cache", None)
        # as Trainer counts: over all accumulated batches where it says so, else over this one
        count = _targets(labels) if num_items_in_batch is None else num_items_in_batch
        teaches = model.training and (self.kl_weight or self.attention_transfer_weight)
        seen = 0 if cache is None else int(cache.get_seq_length())
        base, base_attention = self._taught(model, inputs, base_cache) if teaches else (None, [])
        watched = attention_outputs(model) if teaches and self.attention_transfer_weight else nullcontext([])
        told = self._write_weight() if model.training and stated is not None else 0.0
        gated = write_gates(model) if told else nullcontext([])
        with watched as attention, gated as gates:
            outputs = model(**inputs, past_key_values=cache, use_cache=cache is not None)
        loss = (next_token_losses(outputs.logits, labels) * weights[:, 1:]).sum() / count
        if base is not None and self.kl_weight:
            loss = loss + self.kl_weight * kl_from_base(outputs.logits, base) / count
        if gates:
            gate_loss = write_loss(gates, stated, self.fact_weight)
            loss = loss + told * gate_loss * labels[:, 1:].numel() / count
        if teaches and self.attention_transfer_weight:
            loss = (
                loss
                + self.attention_transfer_weight
                * self._apart(attention, base_attention, seen)
                * labels[:, 1:].numel()
                / count
            )
        if (
            num_items_in_batch is not None
            and self.args.average_tokens_across_devices
            and self.model_accepts_loss_kwargs
        ):
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # their gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def _write_weight(self) -> float:
        """What ``write_gate_weight`` has come to at this step."""
        if self.write_gate_steps is None:
            return self.write_gate_weight
        return self.write_gate_weight * min(
            1.0, max(self.write_gate_floor, 2 - self.state.global_step / self.write_gate_steps)
        )

    def _far_weighted(self, model, inputs):
        """``inputs`` with the weights of ``long_context_weight``."""
        labels = inputs["labels"]
        weights = inputs.get("loss_weights", torch.ones_like(labels, dtype=torch.float32)).clone()
        text = inputs.get("stated", torch.full_like(labels, -1)).eq(-1).all(1).nonzero()[:, 0]
        if not len(text) and self.accelerator.num_processes == 1:
            return inputs
        rows = text if len(text) else text.new_zeros(1)  # all processes make the same calls
        told = {k: x[rows] for k, x in inputs.items() if k not in ("labels", "loss_weights", "stated")}
        whole, near = (self._base_losses(model, told, labels[rows], window) for window in (False, True))
        if len(text):
            weights[text, 1:] *= 1 + self.long_context_weight * told_from_far(near, whole)
        return {**inputs, "loss_weights": weights}

    def _base_losses(self, model, inputs, labels: torch.Tensor, window: bool) -> torch.Tensor:
        """Cross entropy in nats [N, T - 1] of the base with its whole context, or with the window alone."""
        with torch.no_grad(), _not_training(model), as_base(model, window), self.compute_loss_context_manager():
            return next_token_losses(model(**inputs, use_cache=False).logits, labels)

    def _taught(self, model, inputs, cache: Cache | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's logits on the whole context, and what its layers' attention gives out."""
        with torch.no_grad(), _not_training(model), as_base(model), attention_outputs(model) as attention:
            logits = model(**inputs, past_key_values=cache, use_cache=cache is not None).logits
        return logits, attention

    def _apart(self, ours, base, seen: int) -> torch.Tensor | float:
        """Distance of the layers' attention outputs [B, T, H * D] beyond the window, ``seen`` tokens into the row."""
        near, tokens = max(0, self.window - seen), ours[0].shape[1]
        if near < tokens:
            return attention_distance(ours, base, near)
        if self.tbptt_chunks == 1:
            raise ValueError(
                f"attention_transfer_weight compares beyond the window of {self.window}: rows of {tokens} tokens are too short"
            )
        return 0.0


def _targets(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens are predicted: none predicts the first of a row."""
    return (labels[:, 1:] != IGNORE).sum()


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
