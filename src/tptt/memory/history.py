"""What a token sees of the ones just before it: raw keys and values, turned into virtual tokens or averaged.

Legend: B batch, M tokens that are remembered, T tokens, N virtual tokens of each, Hk key/value heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F


class ShortHistory:
    """Raw keys and values of a call behind the M real tokens before it.

    Args:
        raw: [B, T, Hk, D + V], keys beside values.
        history: [B, M, Hk, D + V], the M tokens before; None is the start of a sequence.
        real: [B, T] bool, False at padding, which is passed over; None is no padding.
        count: M.
    """

    def __init__(self, raw: torch.Tensor, history: torch.Tensor | None, real: torch.Tensor | None, count: int) -> None:
        before = raw.new_zeros(raw.shape[0], count, *raw.shape[2:]) if history is None else history.to(raw.device)
        self.count, self.sequence, self.inverse = count, torch.cat([before, raw], 1), None
        if real is not None:  # padding to the front, so that real tokens stand next to each other
            real = torch.cat([real.new_ones(raw.shape[0], count), real], 1)
            order = real.int().argsort(dim=1, stable=True)
            self.inverse = order.argsort(1)
            self.sequence = _gather(self.sequence * real[..., None, None], order)

    @property
    def history(self) -> torch.Tensor:
        """[B, M, Hk, D + V]: the last M real tokens, for the next call; a copy, or a cache would hold the whole
        call."""
        return self.sequence[:, -self.count :].clone()

    def each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``function`` for the call's own tokens, [B, T, ...]. It takes [B, M + L, Hk, D + V] to [B, L, ...], what each
        token but the first M makes of those before it."""
        out = function(F.pad(self.sequence, (0, 0, 0, 0, self.count, 0)))
        return (out if self.inverse is None else _gather(out, self.inverse))[:, self.count :]


def _gather(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))


def derivative(x: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """[B, M + L, ...] -> [B, L, N, ...]: x^(m)_t = 2^-m sum_i (-1)^i C(m, i) x_{t-i}; the token itself is m = 0."""
    length = x.shape[1] - count
    shifted = [x[:, count - i : count - i + length] for i in range(steps)]
    virtual = [sum((-1) ** i * math.comb(m, i) * shifted[i] for i in range(m + 1)) / 2**m for m in range(steps)]
    return torch.stack(virtual, 2)  # type: ignore[arg-type]


_SHORT = 1e-3


def mask_null_keys(k: torch.Tensor) -> torch.Tensor:
    """[B, T, N, Hk, D], the token's own key first -> [B, T, N, Hk, 1]: 1, but for virtual keys shorter than 1e-3 of the
    token's own, where it falls to 0 with their length. A repeated token leaves rounding noise there, which the
    normalisation would blow up to a key like any other."""
    length = torch.linalg.vector_norm(k, dim=-1, keepdim=True)
    return (length / (_SHORT * length[:, :, :1]).clamp_min(1e-30)).clamp(max=1.0)
