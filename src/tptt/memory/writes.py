"""What a memory writes, and the recurrence that takes it in.

Legend: B batch, T tokens, H heads, K feature width, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from tptt.ops import delta_rule, linear_attention


class Writes(NamedTuple):
    """k [B, T, H, K], v [B, T, H, D], beta [B, T, H], g [B, T, H] or [B, T, H, K] or None, all float32; and whether they
    are written by the delta rule."""

    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    g: torch.Tensor | None
    delta: bool = True

    def map(self, function) -> Writes:
        """``function`` of each tensor."""
        k, v, beta = (function(x) for x in self[:3])
        return Writes(k, v, beta, None if self.g is None else function(self.g), self.delta)

    @classmethod
    def joined(cls, parts: list[Writes], tokens: int) -> Writes:
        """The first ``tokens`` of ``parts``, one after the other."""

        def join(name: str) -> torch.Tensor:
            return torch.cat([getattr(part, name) for part in parts], 1)[:, :tokens]

        return cls(join("k"), join("v"), join("beta"), None if parts[0].g is None else join("g"), parts[0].delta)

    def run(self, q: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What q [B, T, H, K] reads, [B, T, H, D], and the state [B, H, K, D] afterwards, from ``state`` (None: zero)."""
        operator = delta_rule if self.delta else linear_attention
        return operator(q, *self[:4], initial_state=state, output_final_state=True)

    def state_after(self, state: torch.Tensor | None) -> torch.Tensor:
        """The state after these writes, from ``state`` (None is zero)."""
        return self.run(self.k, state)[1]
