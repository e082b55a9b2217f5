"""Feature maps of queries and keys: [B, T, H, D] -> [B, T, H, K] with unit L2 norm, computed in float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class SignSplit(nn.Module):
    """SiLU([Wx, -Wx]) / ||.||, W [H, D, D] learned from the identity; K = 2 D (LoLCATs, arXiv 2410.10254, section 3)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.width = 2 * head_dim  # K
        self.weight = nn.Parameter(torch.eye(head_dim, dtype=torch.float32).repeat(heads, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("bthd,hed->bthe", x.float(), self.weight.float())
        return F.normalize(F.silu(torch.cat([x, -x], -1)), dim=-1, eps=1e-6)


class Silu(nn.Module):
    """SiLU(x) / ||.||; K = D, no parameters."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.width = head_dim  # K

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.silu(x.float()), dim=-1, eps=1e-6)


class Cubic(nn.Module):
    """ReLU(Wx)^3 / ||.||, W [H, 8 D, D] learned from random rotations; K = 8 D.

    The power sets a key that matches apart from those that nearly do, and the width holds more of them: where every token of
    a text may be asked for, a softmax head is followed far better than by `SignSplit`, with a state four times as large.
    """

    ROTATIONS = 8

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.width = self.ROTATIONS * head_dim  # K
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(self.ROTATIONS, head_dim, head_dim, generator=generator)
        self.weight = nn.Parameter(torch.linalg.qr(square)[0].flatten(0, 1).repeat(heads, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("bthd,hed->bthe", x.float(), self.weight.float())
        return F.normalize(x.relu().pow(3), dim=-1, eps=1e-6)


MAPS: dict[str, type[nn.Module]] = {"sign_split": SignSplit, "silu": Silu, "cubic": Cubic}
