"""Trainer with weighted targets, supervised write gates, the base as a teacher, and rows longer than fits at once.

Legend: B rows, T tokens of a row or of a chunk of it, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from transformers import Cache, Trainer

from tptt.data import IGNORE
from tptt.evaluation.kl import kl_from_base
from tptt.evaluation.perplexity import next_token_losses
from tptt.hf import as_base, attention_outputs, memories, write_gates
from tptt.hf.compat import cache_keyword, prepared_inputs
from tptt.hf.modes import in_eval_mode

from .losses import attention_distance, nats_from_far, write_gate_loss
from .optim import parameter_groups
from .settings import TrainingSettings
from .targets import beyond_window, real_tokens, target_mask
from .tbptt import BASE_CACHE, CACHE, chunks_of, end_gradients, new_cache

Inputs = Mapping[str, torch.Tensor]


class ConversionTrainer(Trainer):
    """Trainer whose rows may carry ``loss_weights`` and ``stated`` [B, T] (`MixedRows`).

    ``TrainingArguments(remove_unused_columns=False)`` lets them through.
    The loss is the weighted cross entropy per target in nats; rows without weights have weight 1. Padding and ignored
    labels (-100) count in none of its terms. The teacher of ``kl_weight``, ``attention_transfer_weight`` and
    ``long_context_weight`` is the base inside the model: memory off, LoRA off, whole context.

    Args:
        settings: the weights of the loss's terms (see `TrainingSettings`), the learning rates of LoRA and of the
            memory, and ``tbptt_chunks``; None is the default recipe. What `TrainingArguments` also says (steps, batch
            size, seed) is taken from there: `tptt.train.training_arguments` makes it from settings.
        The other arguments are Trainer's.

    Raises:
        ValueError: a teacher for a model without a memory, ``long_context_weight`` for one without a window,
            ``tbptt_chunks`` with gradient checkpointing, which takes the cache away; a row that cannot be cut into
            chunks of one length, or that ``attention_transfer_weight`` finds no longer than the window.
    """

    def __init__(self, *args, settings: TrainingSettings | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings or TrainingSettings()
        found = memories(self.model)
        self.window = (found[0].config.window if found else None) or 0
        self._check(bool(found))

    def _check(self, has_memory: bool) -> None:
        settings = self.settings
        if settings.needs_teacher and not has_memory:
            raise ValueError(
                "kl_weight and attention_transfer_weight need a model with a memory: its base is the teacher"
            )
        if settings.tbptt_chunks > 1 and self.args.gradient_checkpointing:
            raise ValueError("tbptt_chunks needs the cache that gradient_checkpointing takes away: use one of them")
        if settings.long_context_weight and not self.window:
            raise ValueError(
                "long_context_weight compares the base's whole context with the window: set max_self_attn_length"
            )

    def create_optimizer(self, model=None):
        """Trainer's own kind of optimizer (``TrainingArguments.optim``) over `parameter_groups`.

        Made when Trainer asks for it, because FSDP has no use for one that was made before its wrapping.
        """
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            trained = self.model if model is None else model
            rates = self.settings.learning_rate, self.settings.memory_learning_rate
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = parameter_groups(trained, *rates, self.args.weight_decay)
            self.optimizer_cls_and_kwargs = kind, {**options, "params": groups}
        return super().create_optimizer(model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.settings.long_context_weight:
            inputs = self._weighted_by_context(model, prepared_inputs(self, inputs))
        chunks = self.settings.tbptt_chunks
        if chunks == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        if num_items_in_batch is None:
            num_items_in_batch = target_mask(inputs["labels"]).sum()
        caches = {CACHE: new_cache(self.model)}
        if self.settings.needs_teacher:
            caches[BASE_CACHE] = new_cache(self.model)
        total = 0.0
        for chunk in chunks_of(inputs, chunks):
            total = total + super().training_step(model, chunk | caches, num_items_in_batch)
            end_gradients(caches[CACHE])
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        settings, inputs = self.settings, dict(inputs)
        stated, weights = inputs.pop("stated", None), inputs.pop("loss_weights", None)
        if weights is None and not settings.needs_teacher and settings.tbptt_chunks == 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        labels = inputs.pop("labels")
        cache, base_cache = inputs.pop(CACHE, None), inputs.pop(BASE_CACHE, None)
        seen = 0 if cache is None else int(cache.get_seq_length())
        weights = torch.ones_like(labels) if weights is None else weights
        teaches = model.training and settings.needs_teacher
        teacher = self._teacher(model, inputs, base_cache) if teaches else None
        gate_weight = self._write_gate_weight() if model.training and stated is not None else 0.0
        watched = attention_outputs(model) if teaches and settings.attention_transfer_weight else nullcontext([])
        gated = write_gates(model) if gate_weight else nullcontext([])
        with watched as attention, gated as gates:
            outputs = model(**inputs, **cache_keyword(self.model, cache), use_cache=cache is not None)
        # per row, because a batch of Trainer's accumulation may hold other numbers of targets than the next
        targets = target_mask(labels).sum(1)
        total = (next_token_losses(outputs.logits, labels) * weights[:, 1:]).sum()
        if gates:
            total = total + gate_weight * (write_gate_loss(gates, stated, settings.fact_weight) * targets).sum()
        if teacher is not None:
            total = total + self._teacher_loss(outputs.logits, attention, teacher, labels, inputs, seen)
        # over as many targets as Trainer says: those of all accumulated batches, where it counts them
        loss = total / (targets.sum() if num_items_in_batch is None else num_items_in_batch)
        loss = loss * self._averaged_over(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _averaged_over(self, num_items_in_batch) -> int:
        """By how much a loss is too small that counted the targets of all processes: their gradients are averaged."""
        counts_all = num_items_in_batch is not None and self.args.average_tokens_across_devices
        if not (counts_all and self.model_accepts_loss_kwargs):
            return 1
        return self.accelerator.num_processes // self.get_tp_size()

    def _write_gate_weight(self) -> float:
        """``write_gate_weight`` at this step."""
        settings = self.settings
        if settings.write_gate_steps is None:
            return settings.write_gate_weight
        left = 2 - self.state.global_step / settings.write_gate_steps
        return settings.write_gate_weight * min(1.0, max(settings.write_gate_floor, left))

    def _teacher(self, model, inputs: Inputs, cache: Cache | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's logits on the whole context, and the attention outputs of its layers."""
        with torch.no_grad(), in_eval_mode(model), as_base(model), attention_outputs(model) as attention:
            logits = model(**inputs, **cache_keyword(self.model, cache), use_cache=cache is not None).logits
        return logits, attention

    def _teacher_loss(
        self,
        logits: torch.Tensor,
        attention: list[torch.Tensor],
        teacher,
        labels: torch.Tensor,
        inputs: Inputs,
        seen: int,
    ) -> torch.Tensor:
        """The teacher's terms, summed over targets; ``seen`` tokens of each row came before."""
        base_logits, base_attention = teacher
        batch, tokens = labels.shape
        real = real_tokens(inputs.get("attention_mask"), batch, seen + tokens, labels.device)
        counts = real[:, seen:] & (labels != IGNORE)
        total = logits.new_zeros((), dtype=torch.float32)
        if self.settings.kl_weight:
            from_real = counts & real.roll(1, 1)[:, seen:]  # left padding predicts the first token of a row
            total = total + self.settings.kl_weight * kl_from_base(logits, base_logits, from_real.float())
        if self.settings.attention_transfer_weight:
            if seen + tokens <= self.window and self.settings.tbptt_chunks == 1:
                raise ValueError(
                    f"attention_transfer_weight compares beyond the window of {self.window}: rows of {tokens} tokens "
                    "are too short"
                )
            counts = counts & beyond_window(real, self.window)[:, seen:]
            apart = attention_distance(attention, base_attention, counts) * target_mask(labels).sum(1)
            total = total + self.settings.attention_transfer_weight * apart.sum()
        return total

    def _weighted_by_context(self, model, inputs: Inputs) -> dict[str, torch.Tensor]:
        """``inputs`` with the weights of ``long_context_weight``. Rows that state facts keep theirs."""
        labels = inputs["labels"]
        weights = inputs.get("loss_weights", torch.ones_like(labels, dtype=torch.float32)).clone()
        text = inputs.get("stated", torch.full_like(labels, -1)).eq(-1).all(1).nonzero()[:, 0]
        if not len(text) and self.accelerator.num_processes == 1:
            return dict(inputs)
        rows = text if len(text) else text.new_zeros(1)  # all processes make the same calls
        asked = {k: x[rows] for k, x in inputs.items() if k not in ("labels", "loss_weights", "stated")}
        whole, near = (self._base_losses(model, asked, labels[rows], window) for window in (False, True))
        if len(text):
            weights[text, 1:] *= 1 + self.settings.long_context_weight * nats_from_far(near, whole)
        return {**inputs, "loss_weights": weights}

    def _base_losses(self, model, inputs: Inputs, labels: torch.Tensor, window: bool) -> torch.Tensor:
        """Cross entropy in nats [B, T - 1] of the base, with its whole context or with the window alone."""
        with torch.no_grad(), in_eval_mode(model), as_base(model, window), self.compute_loss_context_manager():
            return next_token_losses(model(**inputs, use_cache=False).logits, labels)
