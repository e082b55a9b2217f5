"""Perplexity of token rows."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
from torch.nn import functional as F


@contextmanager
def evaluating(model):
    """``model`` in eval mode and without gradients; its mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def perplexity(model, rows: torch.Tensor, tokens_per_batch: int = 4096) -> float:
    """exp of the mean cross entropy of all tokens of ``rows`` [N, T] but the first of each.

    Raises:
        ValueError: ``rows`` has no token to predict.
    """
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise ValueError(f"perplexity needs rows [N >= 1, T >= 2], got {list(rows.shape)}")
    total = 0.0
    with evaluating(model):
        for ids in rows.split(max(1, tokens_per_batch // rows.shape[1])):
            ids = ids.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            total += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (rows.shape[0] * (rows.shape[1] - 1)))
