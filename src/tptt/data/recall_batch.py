"""What a sampler of recall rows gives. Legend: B rows, T tokens of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

IGNORE = -100
"""The label that a loss leaves out (``ignore_index`` of PyTorch's cross-entropy)."""


@dataclass
class RecallBatch:
    """Rows that state facts and ask for them again.

    Args:
        input_ids: [B, T].
        answers: [B, T], the tokens of each answer that is asked for, where they stand; IGNORE elsewhere.
        distance: [B, T], how many tokens before such a place the same token was stated; 0 elsewhere.
        number: [B, T], tells the answers of a row apart that are asked for; -1 elsewhere.
    """

    input_ids: torch.Tensor
    answers: torch.Tensor
    distance: torch.Tensor
    number: torch.Tensor

    @property
    def stated(self) -> torch.Tensor:
        """[B, T] bool: the tokens of answers where they are stated, before they are asked for."""
        found = torch.zeros_like(self.answers, dtype=torch.bool)
        row, asked = (self.answers != IGNORE).nonzero(as_tuple=True)
        found[row, asked - self.distance[row, asked]] = True
        return found


class RecallSampler(Protocol):
    """Draws recall rows: `KeyValueRecall`, `RecallTask`."""

    def draw(self, batch: int, length: int, generator: torch.Generator, facts: int | None = None) -> RecallBatch:
        """``batch`` rows of ``length`` tokens, which ``generator`` alone decides, of ``facts`` facts each."""
        ...
