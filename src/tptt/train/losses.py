"""Terms of the training loss beside cross entropy. Legend: B rows, T tokens, H heads, D head width, S states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

_MAX_NATS = 4.0
"""What one token may gain from far context: a name that the window cannot guess, but not the rarest of names."""


def attention_distance(
    ours: Sequence[torch.Tensor], base: Sequence[torch.Tensor], counts: torch.Tensor
) -> torch.Tensor:
    """Squared distance of attention outputs from the base's over the base's mean square, mean over layers: [B].

    Attention transfer as in LoLCATs (arXiv 2410.10254, section 3.1), relative instead of absolute, so that layers of
    small outputs count as much as others.

    Args:
        ours, base: of each layer, [B, T, H * D].
        counts: [B, T] bool, which tokens are compared; a row without any has distance 0.
    """
    shares = []
    for a, b in zip(ours, base, strict=True):
        a, b = (x.float().masked_fill(~counts[..., None], 0.0) for x in (a, b))
        shares.append((a - b).pow(2).sum((1, 2)) / b.pow(2).sum((1, 2)).clamp_min(1e-12))
    return torch.stack(shares).mean(0)


def write_gate_loss(
    gates: Sequence[tuple[int, torch.Tensor]], stated: torch.Tensor, fact_weight: float
) -> torch.Tensor:
    """Cross entropy of write gates in nats, [B]: tokens that state a fact are to be written, the others are not.

    Args:
        gates: of each memory its feature width and the logits [B, T, S] of its gate. A memory counts in proportion to
            its width, because the wide ones are those whose base layer needs far context.
        stated: [B, T], 1 where a fact is stated, 0 where none is; other tokens do not count.
        fact_weight: weight of the first kind over that of the second, whose mean is 1. A row that lacks one of the
            kinds has loss 0.
    """
    facts, rest = (stated == 1).float(), (stated == 0).float()
    both = (facts.sum(1) > 0) & (rest.sum(1) > 0)
    facts, rest = (both[:, None] * x / x.sum(1, keepdim=True).clamp_min(1) for x in (facts, rest))
    total = torch.zeros(len(stated), device=stated.device)
    for width, logits in gates:
        each = fact_weight * facts * F.softplus(-logits).mean(-1) + rest * F.softplus(logits).mean(-1)
        total = total + width * each.sum(1)
    return total * 2 / (1 + fact_weight) / sum(width for width, _ in gates)


def nats_from_far(window: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Nats in [0, 4] by which a base predicts each token better from its whole context than from a window, [B, T], for
    its cross entropies from the ``window`` [B, T] and from the ``whole`` context [B, T].
    """
    return (window - whole).clamp(0, _MAX_NATS)
