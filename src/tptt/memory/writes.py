"""What a memory writes, and the recurrence that takes it in.

Legend: B batch, T tokens, H heads, K feature width, D head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tptt.ops import delta_rule, linear_attention

from .recent import Recent


class Writes(NamedTuple):
    """k [B, T, H, K], v [B, T, H, D], beta [B, T, H], with an axis of N virtual tokens after T where there are any;
    g [B, T, H] or [B, T, H, K] or None, all float32; whether they are written by the delta rule; and, for a memory that
    looks at the tokens before, their raw keys and values (see recent.py), which are real, and what the next call sees."""

    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    g: torch.Tensor | None
    delta: bool = True
    raw: torch.Tensor | None = None
    real: torch.Tensor | None = None
    taps: torch.Tensor | None = None

    def map(self, function) -> Writes:
        """``function`` of each tensor."""
        k, v, beta = (function(x) for x in self[:3])
        g, *recent = (None if x is None else function(x) for x in (self.g, self.raw, self.real, self.taps))
        return Writes(k, v, beta, g, self.delta, *recent)

    @classmethod
    def joined(cls, parts: list[Writes], tokens: int, before: torch.Tensor | None) -> Writes:
        """The first ``tokens`` of ``parts``, one after the other; ``before`` are the taps that stood before them."""

        def join(name: str) -> Any:
            found = [getattr(part, name) for part in parts]
            if name == "real" and any(x is not None for x in found):
                found = [part.k.new_ones(part.k.shape[:2], dtype=torch.bool) if x is None else x
                         for x, part in zip(found, parts, strict=True)]  # fmt: skip
            return None if found[0] is None else torch.cat(found, 1)[:, :tokens]

        g, raw, real = join("g"), join("raw"), join("real")
        taps = None if parts[0].taps is None else Recent(raw, before, real, parts[0].taps.shape[1]).taps
        return cls(join("k"), join("v"), join("beta"), g, parts[0].delta, raw, real, taps)

    def run(self, q: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What q [B, T, H, K] reads, [B, T, H, D], and the state [B, H, K, D] afterwards, from ``state`` (None: zero)."""
        operator = delta_rule if self.delta else linear_attention
        return operator(q, *self[:4], initial_state=state, output_final_state=True)

    def state_after(self, state: torch.Tensor | None) -> torch.Tensor:
        """The state after these writes, from ``state`` (None is zero)."""
        return self.run(self.k if self.k.dim() == 4 else self.k[:, :, 0], state)[1]
