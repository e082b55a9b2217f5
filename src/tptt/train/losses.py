"""What training minimises. Legend: B rows, T tokens, V vocabulary, H heads, D head width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

_MOST_NATS = 4.0  # that one token may be told: a name that the window cannot guess, and not the rarest of names


def attention_distance(ours: Sequence[torch.Tensor], base: Sequence[torch.Tensor], window: int) -> torch.Tensor:
    """Mean over layers and rows of the squared distance of attention outputs [B, T, H * D] at tokens from ``window`` on, as
    a share of the base's mean square in the row; before it a window sees all that the base sees."""
    shares = []
    for a, b in zip(ours, base, strict=True):
        a, b = a[:, window:].float(), b[:, window:].float()
        shares.append((a - b).pow(2).mean((1, 2)) / b.pow(2).mean((1, 2)).clamp_min(1e-12))
    return torch.stack(shares).mean()


def write_loss(gates: Sequence[tuple[int, torch.Tensor]], stated: torch.Tensor, fact_weight: float) -> torch.Tensor:
    """Cross entropy of write gates, mean over the rows: tokens where ``stated`` [B, T] is 1 are to be written, those where it
    is 0 not, others do not count.

    ``gates`` are the feature widths of memories and the logits [B, T, S] of their gates: a memory counts by its width, since
    the wide ones are where the base looks far back. The few of the one kind weigh in a row ``fact_weight`` times what the
    many of the other do, 2 together; a row without both adds 0.
    """
    wanted, rest = (stated == 1).float(), (stated == 0).float()
    both = (wanted.sum(1) > 0) & (rest.sum(1) > 0)
    wanted, rest = (both[:, None] * x / x.sum(1, keepdim=True).clamp_min(1) for x in (wanted, rest))
    total = torch.zeros((), device=stated.device)
    for width, x in gates:
        each = fact_weight * wanted * F.softplus(-x).mean(-1) + rest * F.softplus(x).mean(-1)
        total = total + width * each.sum(1).mean()
    return total * 2 / (1 + fact_weight) / sum(width for width, _ in gates)


def told_from_far(window: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Nats, 0 to 4, that a base's whole context tells it of tokens whose cross entropy it has as ``window`` [N, T] from a
    window and as ``whole`` [N, T] from all."""
    return (window - whole).clamp(0, _MOST_NATS)
