"""Perplexity of token rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from tptt.data import IGNORE
from tptt.hf.modes import in_eval_mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`in_eval_mode`, without gradients. What is computed within are inference tensors, which cannot take part in
    training; for a teacher use `in_eval_mode` and ``torch.no_grad``."""
    with in_eval_mode(model), torch.inference_mode():
        yield


def next_token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of each token but the first, [N, T - 1], for logits [N, T, V]; 0 where the label is
    IGNORE."""
    flat = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
    )
    return flat.view(len(labels), -1)


def token_losses(model, rows: torch.Tensor, tokens_per_batch: int = 4096) -> torch.Tensor:
    """Cross entropy in nats, [N, T - 1], of all tokens of ``rows`` [N, T] but the first of each.

    Raises:
        ValueError: ``rows`` has no token to predict.
    """
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise ValueError(f"perplexity needs rows [N >= 1, T >= 2], got {list(rows.shape)}")
    found = []
    with evaluating(model):
        for ids in rows.split(max(1, tokens_per_batch // rows.shape[1])):
            ids = ids.to(model.device)
            found.append(next_token_losses(model(input_ids=ids, use_cache=False).logits, ids).cpu())
    return torch.cat(found)


def perplexity(model, rows: torch.Tensor, tokens_per_batch: int = 4096) -> float:
    """exp of the mean cross entropy of all tokens of ``rows`` [N, T] but the first of each. Infinite where the mean is
    beyond what a float64 can take the exponential of (709 nats); NaN where the model computes NaN.

    Raises:
        ValueError: ``rows`` has no token to predict.
    """
    return _exp_of_mean(token_losses(model, rows, tokens_per_batch))


def _exp_of_mean(losses: torch.Tensor) -> float:
    """torch's exp overflows to infinity, where ``math.exp`` raises OverflowError."""
    return losses.double().mean().exp().item()


def perplexity_by_position(
    model, rows: torch.Tensor, bounds: Sequence[int], tokens_per_batch: int = 4096
) -> dict[int, float]:
    """Perplexity of the tokens between two neighbouring ``bounds``, as {upper bound: perplexity}. The first span begins
    at 0.

    Args:
        rows: [N, T].
        bounds: ascending positions, T at most; tokens from the last one on are left out.

    Raises:
        ValueError: the bounds do not rise, or lie beyond the rows.
    """
    if list(bounds) != sorted(set(bounds)) or not bounds or not 1 < bounds[0] <= bounds[-1] <= rows.shape[1]:
        raise ValueError(f"bounds must rise from 2 or more to {rows.shape[1]} at most, got {list(bounds)}")
    losses = token_losses(model, rows, tokens_per_batch)
    starts = [1, *bounds[:-1]]
    return {end: _exp_of_mean(losses[:, start - 1 : end - 1]) for start, end in zip(starts, bounds, strict=True)}
