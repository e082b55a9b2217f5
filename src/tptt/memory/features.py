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


MAPS: dict[str, type[nn.Module]] = {"sign_split": SignSplit, "silu": Silu}
