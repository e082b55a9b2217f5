"""The Kullback-Leibler divergence of a model from its base. Legend: B rows, T tokens, V vocabulary."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_TOKENS_AT_ONCE = 2048  # rows of logits in float32 at a time


def kl_from_base(logits: torch.Tensor, base_logits: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """KL(base || model) in nats summed over all tokens but the last of each row; logits [B, T, V].

    ``weights`` [B, T] are those of predicting each token, as `MixedRows` gives them; None is 1 for all.
    """
    ours, theirs = (x[:, :-1].flatten(0, 1) for x in (logits, base_logits))
    each = ours.new_ones(len(ours)) if weights is None else weights[:, 1:].flatten()
    total = logits.new_zeros((), dtype=torch.float32)
    parts = (x.split(_TOKENS_AT_ONCE) for x in (ours, theirs, each))
    for a, b, weight in zip(*parts, strict=True):
        a, b = a.float().log_softmax(-1), b.float().log_softmax(-1)
        total = total + F.kl_div(a, b, log_target=True, reduction="none").sum(-1) @ weight.float()
    return total
