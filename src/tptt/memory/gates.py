"""Write gate, decay and Memory as Gate: one number per head and token, [B, T, H], or per channel too, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class TokenGate(nn.Module):
    """A linear map of the layer's input [B, T, hidden] to one number per head; starts at ``start`` everywhere."""

    down = None

    def __init__(self, hidden: int, heads: int, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, hidden, dtype=torch.float32))
        self.bias = nn.Parameter(torch.full((heads,), start, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class ChannelGate(nn.Module):
    """One number per head and feature, [B, T, H, K]: a linear map of the layer's input of ``rank``, which is the width
    of a head (Kimi Linear, arXiv 2510.26692); starts at ``start`` everywhere."""

    def __init__(self, hidden: int, heads: int, width: int, rank: int, start: float) -> None:
        super().__init__()
        self.heads = heads
        self.down = nn.Parameter(torch.randn(rank, hidden, dtype=torch.float32) * hidden**-0.5)
        self.up = nn.Parameter(torch.zeros(heads * width, rank, dtype=torch.float32))
        self.bias = nn.Parameter(torch.full((heads * width,), start, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.linear(x.float(), self.down.float())
        return F.linear(low, self.up.float(), self.bias.float()).unflatten(-1, (self.heads, -1))


class MLPGate(nn.Module):
    """Two linear maps of the layer's input [B, T, hidden], of `RANK` numbers, with SiLU between; one number per head, 0
    at the start. What it asks the input is drawn once, the same in every process, and learned from there."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        here = torch.empty(0).device  # "meta" where weights are loaded later
        options = {"dtype": torch.float32, "device": "cpu", "generator": torch.Generator("cpu").manual_seed(0)}
        self.down = nn.Parameter((torch.randn(RANK, hidden, **options) * hidden**-0.5).to(here))
        self.weight = nn.Parameter(torch.zeros(heads, RANK, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(heads, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = F.silu(F.linear(x.float(), self.down.float()))
        return F.linear(found, self.weight.float(), self.bias.float())


RANK = 64


class HeadGate(nn.Module):
    """One learned number per head, 0 at the start."""

    weight = down = None

    def __init__(self, hidden: int, heads: int, start: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((heads,), start, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.float().expand(*x.shape[:2], -1)


class NoGate(nn.Module):
    """Zero everywhere, no parameters."""

    weight = bias = down = None

    def __init__(self, hidden: int, heads: int, start: float = 0.0) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(*x.shape[:2], self.heads, dtype=torch.float32)


WRITE: dict[str, type[nn.Module]] = {"learned": TokenGate, "constant": NoGate}
MIX: dict[str, Callable[[int, int], nn.Module]] = {"mlp": MLPGate, "token": TokenGate, "head": HeadGate, "none": NoGate}
# decay alpha = sigmoid(gate) starts at .995 per token
DECAY_START = math.log(0.995 / 0.005)
DECAY: dict[str, Callable[[int, int, int, int], nn.Module]] = {  # of hidden, heads, feature width and head width
    "head": lambda hidden, heads, width, rank: TokenGate(hidden, heads, DECAY_START),
    "channel": lambda hidden, heads, width, rank: ChannelGate(hidden, heads, width, rank, DECAY_START),
}
