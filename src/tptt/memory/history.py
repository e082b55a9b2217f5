"""What a token sees of the ones just before it: raw keys and values, averaged or turned into virtual tokens.

Legend: B batch, M tokens that are remembered, T tokens, N virtual tokens of each, Hk key/value heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

AVERAGED = 3
"""Tokens that a parameter-free write gate averages over, the token itself included (TPTT, arXiv 2506.17671)."""


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
        self.raw, self.count, self.sequence, self.inverse = raw, count, torch.cat([before, raw], 1), None
        if real is not None:  # padding to the front, so that real tokens stand next to each other
            real = torch.cat([real.new_ones(raw.shape[0], count), real], 1)
            order = real.int().argsort(dim=1, stable=True)
            self.inverse = order.argsort(1)
            self.sequence = _gather(self.sequence * real[..., None, None], order)

    @property
    def history(self) -> torch.Tensor:
        """[B, M, Hk, D + V]: the last M real tokens, for the next call; a copy, or a cache would hold the whole call."""
        return self.sequence[:, -self.count :].clone()

    def each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``function`` takes [B, M + L, Hk, D + V] to [B, L, ...], what each but the first M makes of those before it; for the
        call's own tokens, [B, T, ...]."""
        out = function(F.pad(self.sequence, (0, 0, 0, 0, self.count, 0)))
        return (out if self.inverse is None else _gather(out, self.inverse))[:, self.count :]


def _gather(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))


def average(x: torch.Tensor, count: int) -> torch.Tensor:
    """[B, M + L, ...] -> [B, L, ...]: the mean over AVERAGED tokens, zeros before the start; M = ``count``."""
    length = x.shape[1] - count
    return sum(x[:, count - i : count - i + length] for i in range(AVERAGED)) / AVERAGED  # type: ignore[return-value]


def derivative(x: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """[B, M + L, ...] -> [B, L, N, ...]: x^(m)_t = 2^-m sum_i (-1)^i C(m, i) x_{t-i}; the token itself is m = 0."""
    length = x.shape[1] - count
    shifted = [x[:, count - i : count - i + length] for i in range(steps)]
    return torch.stack(
        [sum((-1) ** i * math.comb(m, i) * shifted[i] for i in range(m + 1)) / 2**m for m in range(steps)],  # type: ignore[arg-type]
        2,
    )


def rotary(x: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """[B, M + L, ..., D] -> [B, L, N, ..., D]: consecutive pairs turned by pi m / N; of an odd D the last channel stays."""
    whole = x.shape[-1] // 2 * 2
    even, odd, last = x[:, count:, ..., 0:whole:2], x[:, count:, ..., 1:whole:2], x[:, count:, ..., whole:]
    turned = []
    for m in range(steps):
        cos, sin = math.cos(math.pi * m / steps), math.sin(math.pi * m / steps)
        pairs = torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)
        turned.append(torch.cat([pairs, last], -1))
    return torch.stack(turned, 2)


def both(x: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """The mean of `derivative` and `rotary`."""
    return (derivative(x, count, steps) + rotary(x, count, steps)) / 2


VIRTUAL: dict[str, Callable[[torch.Tensor, int, int], torch.Tensor]] = {
    "derivative": derivative, "rotary": rotary, "both": both
}  # fmt: skip


_FADES = 1e-3


def mask_null_keys(k: torch.Tensor) -> torch.Tensor:
    """[B, T, N, Hk, D], the token's own key first -> [B, T, N, Hk, 1]: 1, but for virtual keys shorter than 1e-3 of the
    token's own, where it falls to 0 with their length. A repeated token leaves rounding noise there, which the
    normalisation would blow up to a key like any other."""
    length = torch.linalg.vector_norm(k, dim=-1, keepdim=True)
    return (length / (_FADES * length[:, :, :1]).clamp_min(1e-30)).clamp(max=1.0)


def averaged_beta(raw: Sequence[torch.Tensor], count: int, source: str) -> torch.Tensor:
    """Keys [B, M + L, Hk, D] and values [B, M + L, Hk, V] -> beta [B, L, Hk]: sigmoid of the averaged keys ("k"), values ("v")
    or their product ("kv"), the mean over a head's channels."""
    k, v = raw
    x = k * v if source == "kv" else {"k": k, "v": v}[source]
    return torch.sigmoid(average(x.mean(-1), count))
