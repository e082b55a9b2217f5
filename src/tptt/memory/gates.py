"""Write gate, decay and Memory as Gate: one scalar per head and token, [B, T, H], in float32."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class TokenGate(nn.Module):
    """A linear map of the layer's input [B, T, hidden] to one number per head; starts at ``start`` everywhere."""

    def __init__(self, hidden: int, heads: int, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, hidden, dtype=torch.float32))
        self.bias = nn.Parameter(torch.full((heads,), start, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class HeadGate(nn.Module):
    """One learned number per head, 0 at the start."""

    def __init__(self, hidden: int, heads: int, start: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((heads,), start, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.float().expand(*x.shape[:2], -1)


class NoGate(nn.Module):
    """Zero everywhere, no parameters."""

    def __init__(self, hidden: int, heads: int, start: float = 0.0) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(*x.shape[:2], self.heads, dtype=torch.float32)


WRITE: dict[str, type[nn.Module]] = {"learned": TokenGate, "constant": NoGate}
MIX: dict[str, type[nn.Module]] = {"token": TokenGate, "head": HeadGate, "none": NoGate}
# decay alpha = sigmoid(gate) starts at .995 per token
DECAY_START = math.log(0.995 / 0.005)
