"""Feature maps of queries and keys: [B, T, H, D] -> [B, T, H, K] with unit L2 norm, computed in float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LearnedMap(nn.Module):
    """W [H, n D, D], learned from ``start`` [n D, D]; K is the width of the features."""

    def __init__(self, heads: int, start: torch.Tensor, width: int) -> None:
        super().__init__()
        self.width = width  # K
        self.weight = nn.Parameter(start.repeat(heads, 1, 1))
        self._maps: torch.Tensor | None = None  # what it began from, other than the identity

    @staticmethod
    def start(head_dim: int) -> torch.Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def begin_from(self, maps: torch.Tensor) -> bool:
        """Let the features begin as those of A x, A = ``maps`` [H, D, D]; False: they have been trained and stay as they are."""
        start = self.start(maps.shape[-1]).to(self.weight)
        begun = start if self._maps is None else start @ self._maps.to(start)
        if not torch.allclose(begun.expand_as(self.weight), self.weight, rtol=1e-4, atol=1e-6):
            return False
        self._maps = maps.to(start)
        self.weight.copy_(start @ self._maps)
        return True


class SignSplit(LearnedMap):
    """SiLU([Wx, -Wx]) / ||.||, W [H, D, D] learned from the identity; K = 2 D (LoLCATs, arXiv 2410.10254, section 3)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__(heads, self.start(head_dim), 2 * head_dim)

    @staticmethod
    def start(head_dim: int) -> torch.Tensor:
        return torch.eye(head_dim, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("bthd,hed->bthe", x.float(), self.weight.float())
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
    """ReLU(Wx)^3 / ||.||, W [H, 8 D, D] learned from random rotations; K = 8 D.

    The power sets a key that matches apart from those that nearly do, and the width holds more of them: where every token of
    a text may be asked for, a softmax head is followed far better than by `SignSplit`, with a state four times as large.
    """

    ROTATIONS = 8

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__(heads, self.start(head_dim), self.ROTATIONS * head_dim)

    @classmethod
    def start(cls, head_dim: int) -> torch.Tensor:  # type: ignore[override]
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(cls.ROTATIONS, head_dim, head_dim, generator=generator)
        return torch.linalg.qr(square)[0].flatten(0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("bthd,hed->bthe", x.float(), self.weight.float())
        return F.normalize(x.relu().pow(3), dim=-1, eps=1e-6)


MAPS: dict[str, type[nn.Module]] = {"sign_split": SignSplit, "silu": Silu, "cubic": Cubic}
