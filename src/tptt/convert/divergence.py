"""How far a model is from its base while some of its layers attend differently."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tptt.evaluation.kl import kl_from_base
from tptt.evaluation.perplexity import evaluating
from tptt.hf import as_base, softmax_as

Batch = Mapping[str, torch.Tensor]
Change = tuple[Collection[int], Collection[int]]
"""Layers made whole, and layers whose softmax gives nothing (`tptt.hf.softmax_as`)."""


def divergences(
    model: nn.Module,
    batches: Sequence[Batch],
    changes: Sequence[Change],
    advance: Callable[[float], None] | None = None,
) -> list[float]:
    """KL(base || model) in nats per token with each of the ``changes``.

    Args:
        model: converted, with its base inside (LoRA or frozen).
        batches: ``input_ids`` [B, T] and, where tokens weigh differently, ``loss_weights`` [B, T].
        changes: nothing is left of one when the next is measured.
        advance: told of the forward passes done.

    Raises:
        ValueError: the base's own weights train.
    """
    advance = advance or (lambda amount: None)
    totals, count = [0.0] * len(changes), 0
    device = next(model.parameters()).device

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, use_cache=False).logits

    with evaluating(model):
        for batch in batches:
            ids = batch["input_ids"].to(device)
            weights = None if (w := batch.get("loss_weights")) is None else w.to(device)
            count += ids[:, 1:].numel()
            with as_base(model):
                base = logits(ids)
            advance(1)
            for i, (whole, none) in enumerate(changes):
                with softmax_as(model, whole, none):
                    totals[i] += kl_from_base(logits(ids), base, weights).item()
                advance(1)
    return [x / count for x in totals]


@contextmanager
def untrained(model: nn.Module) -> Iterator[None]:
    """Within, nothing trains: before the first step the base is there even where its own weights are going to."""
    trains = [p for p in model.parameters() if p.requires_grad]
    for p in trains:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trains:
            p.requires_grad_(True)
