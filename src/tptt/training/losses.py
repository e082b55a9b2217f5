"""What training minimises. Legend: B rows, T tokens, V vocabulary, H heads, D head width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

_TOKENS_AT_ONCE = 2048  # rows of logits in float32 at a time
_MOST_NATS = 4.0  # that one token may be told: a name that the window cannot guess, and not the rarest of names


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


def attention_distance(ours: Sequence[torch.Tensor], base: Sequence[torch.Tensor], window: int) -> torch.Tensor:
    """Mean over layers and rows of the squared distance of attention outputs [B, T, H * D] at tokens from ``window`` on, as
    a share of the base's mean square in the row; before it a window sees all that the base sees."""
    shares = []
    for a, b in zip(ours, base, strict=True):
        a, b = a[:, window:].float(), b[:, window:].float()
        shares.append((a - b).pow(2).mean((1, 2)) / b.pow(2).mean((1, 2)).clamp_min(1e-12))
    return torch.stack(shares).mean()


def write_loss(gates: Sequence[tuple[int, torch.Tensor]], stated: torch.Tensor, stated_weight: float) -> torch.Tensor:
    """Cross entropy of write gates, mean over the rows: tokens where ``stated`` [B, T] is 1 are to be written, those where it
    is 0 not, others do not count.

    ``gates`` are the feature widths of memories and the logits [B, T, S] of their gates: a memory counts by its width, since
    the wide ones are where the base looks far back. The few of the one kind weigh in a row ``stated_weight`` times what the
    many of the other do, 2 together; a row without both adds 0.
    """
    wanted, rest = (stated == 1).float(), (stated == 0).float()
    both = (wanted.sum(1) > 0) & (rest.sum(1) > 0)
    wanted, rest = (both[:, None] * x / x.sum(1, keepdim=True).clamp_min(1) for x in (wanted, rest))
    total = torch.zeros((), device=stated.device)
    for width, x in gates:
        each = stated_weight * wanted * F.softplus(-x).mean(-1) + rest * F.softplus(x).mean(-1)
        total = total + width * each.sum(1).mean()
    return total * 2 / (1 + stated_weight) / sum(width for width, _ in gates)


def told_from_far(window: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Nats, 0 to 4, that a base's whole context tells it of tokens whose cross entropy it has as ``window`` [N, T] from a
    window and as ``whole`` [N, T] from all."""
    return (window - whole).clamp(0, _MOST_NATS)
