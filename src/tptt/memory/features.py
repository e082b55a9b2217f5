"""Feature maps of queries and keys: [B, T, H, D] -> [B, T, H, K] with unit L2 norm, computed in float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LearnedMap(nn.Module):
    """P [H, rows, D], learned from ``start`` [rows, D]; K is the width of the features."""

    def __init__(self, heads: int, start: torch.Tensor, width: int) -> None:
        super().__init__()
        self.width = width  # K
        here = torch.empty(
            0
        ).device  # a model is built on "meta" where its weights are loaded later; ``start`` never is
        self.weight = nn.Parameter(start.repeat(heads, 1, 1).to(here))
        self._begun = start  # [rows, D] or [H, rows, D]

    @torch.no_grad()
    def begin_from(self, maps: torch.Tensor) -> bool:
        """Let the features begin as those of the first rows of A x, A = ``maps`` [H, D, D]; False: they have been trained and
        stay as they are."""
        if not torch.allclose(self._begun.to(self.weight).expand_as(self.weight), self.weight, rtol=1e-4, atol=1e-6):
            return False
        self._begun = maps[:, : self.weight.shape[1]].to(self.weight)
        self.weight.copy_(self._begun)
        return True

    def mapped(self, x: torch.Tensor) -> torch.Tensor:
        """P x, [B, T, H, rows]."""
        return torch.einsum("bthd,hed->bthe", x.float(), self.weight.float())


class SignSplit(LearnedMap):
    """SiLU([Px, -Px]) / ||.||, P [H, D, D] learned from the identity; K = 2 D (LoLCATs, arXiv 2410.10254, section 3)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__(heads, torch.eye(head_dim, dtype=torch.float32, device="cpu"), 2 * head_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mapped(x)
        return F.normalize(F.silu(torch.cat([x, -x], -1)), dim=-1, eps=1e-6)


class Silu(nn.Module):
    """SiLU(x) / ||.||; K = D, no parameters."""

    weight = None

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.width = head_dim  # K

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.silu(x.float()), dim=-1, eps=1e-6)


class Cubic(LearnedMap):
    """All products of three channels of z = Px / ||Px||, P [H, R, D]: the product of two such features is the third power of
    the cosine of their z. K = R (R + 1) (R + 2) / 6, R the largest with K <= 16 D.

    The power sets a key that matches apart from those that nearly do, and K of them are kept apart: where every token of a
    text may be asked for, a softmax head is followed far better than by `SignSplit`, with a state up to eight times as large.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        rows = next(r for r in range(head_dim, 0, -1) if _cubes(r) <= 16 * head_dim)
        generator = torch.Generator("cpu").manual_seed(0)
        square = torch.randn(head_dim, rows, dtype=torch.float32, device="cpu", generator=generator)
        start = torch.linalg.qr(square)[0].T.contiguous()
        super().__init__(heads, start, _cubes(rows))
        orders = [6.0 / repeats for repeats in _repeats(rows)]  # of a product, in the sum over all i, j and k
        self.register_buffer("weights", torch.tensor(orders).sqrt())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = F.normalize(self.mapped(x), dim=-1, eps=1e-6)
        rows = range(z.shape[-1])  # slices: gathering triples of channels takes five times as long
        pairs = torch.cat([z[..., : j + 1] * z[..., j : j + 1] for j in rows], -1)
        triples = torch.cat([pairs[..., : (k + 1) * (k + 2) // 2] * z[..., k : k + 1] for k in rows], -1)
        return triples * self.weights


def _cubes(rows: int) -> int:
    return rows * (rows + 1) * (rows + 2) // 6


def _repeats(rows: int) -> list[int]:
    """For channels i <= j <= k in the order of `Cubic.forward`, in how many of their 6 orders the same product stands."""
    triples = [(i, j, k) for k in range(rows) for j in range(k + 1) for i in range(j + 1)]
    return [(1, 2, 6)[3 - len(set(t))] for t in triples]


MAPS: dict[str, type[nn.Module]] = {"sign_split": SignSplit, "silu": Silu, "cubic": Cubic}
