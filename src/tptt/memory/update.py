"""What a memory writes, and the recurrence that takes it in.

Legend: B batch, T tokens, H heads, K feature width, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from tptt.ops import delta_rule, linear_attention

from .history import ShortHistory


class MemoryUpdate(NamedTuple):
    """k [B, T, H, K], v [B, T, H, D], beta [B, T, H], with an axis of N virtual tokens after T where there are any;
    g [B, T, H] or [B, T, H, K] or None, all float32; whether they are written by the delta rule; and, for a memory that
    looks at the tokens before, their raw keys and values (see history.py), which are real, and what the next call sees.
    With ``every`` the state goes through `activated` after each ``every`` real tokens of a sequence, of which ``seen`` [B]
    came before."""

    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    g: torch.Tensor | None
    delta: bool = True
    raw: torch.Tensor | None = None
    real: torch.Tensor | None = None
    history: torch.Tensor | None = None
    every: int = 0
    seen: torch.Tensor | None = None

    def map(self, function) -> MemoryUpdate:
        """``function`` of each tensor."""
        k, v, beta = (function(x) for x in self[:3])
        others = (self.g, self.raw, self.real, self.history, self.seen)
        g, raw, real, history, seen = (None if x is None else function(x) for x in others)
        return MemoryUpdate(k, v, beta, g, self.delta, raw, real, history, self.every, seen)

    @classmethod
    def joined(cls, parts: list[MemoryUpdate], tokens: int, before: torch.Tensor | None) -> MemoryUpdate:
        """The first ``tokens`` of ``parts``, one after the other; ``before`` is the history that stood before them."""

        def join(name: str) -> Any:
            found = [getattr(part, name) for part in parts]
            if name == "real" and any(x is not None for x in found):
                found = [part.k.new_ones(part.k.shape[:2], dtype=torch.bool) if x is None else x
                         for x, part in zip(found, parts, strict=True)]  # fmt: skip
            return None if found[0] is None else torch.cat(found, 1)[:, :tokens]

        g, raw, real = join("g"), join("raw"), join("real")
        history = (
            None if parts[0].history is None else ShortHistory(raw, before, real, parts[0].history.shape[1]).history
        )
        first = parts[0]
        return cls(join("k"), join("v"), join("beta"), g, first.delta, raw, real, history, first.every, first.seen)

    def run(
        self, q: torch.Tensor, state: torch.Tensor | None, output_final_state: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What q [B, T, H, K] reads, [B, T, H, D], and the state [B, H, K, D] afterwards, from ``state`` (None: zero);
        without output_final_state that may be None."""
        operator = delta_rule if self.delta else linear_attention
        if not self.every or not self.k.shape[1]:
            return operator(q, *self[:4], initial_state=state, output_final_state=output_final_state)
        out, start = [], 0
        for end, full in self._parts():
            part = (None if x is None else x[:, start:end] for x in self[:4])
            o, state = operator(q[:, start:end], *part, initial_state=state, output_final_state=True)
            state = torch.where(full[:, None, None, None], activated(state), state)
            out.append(o)
            start = end
        return torch.cat(out, 1), state

    def _parts(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Ends of the pieces between activations, and which rows [B] are activated there."""
        tokens = self.k.shape[1]
        real = self.k.new_ones(self.k.shape[:2], dtype=torch.bool) if self.real is None else self.real
        full = real & ((self.seen[:, None] + real.cumsum(1)) % self.every == 0)  # type: ignore[index]
        ends = [t + 1 for t in full.any(0).nonzero().flatten().tolist()]
        for end in ends if ends and ends[-1] == tokens else [*ends, tokens]:
            yield end, full[:, end - 1]

    @property
    def seen_after(self) -> torch.Tensor | None:
        """Real tokens of each row, [B], these included."""
        if self.seen is None:
            return None
        return self.seen + (self.k.shape[1] if self.real is None else self.real.sum(1))

    def apply(self, state: torch.Tensor | None) -> torch.Tensor | None:
        """The state after these writes, from ``state`` (None is zero)."""
        return self.run(self.k if self.k.dim() == 4 else self.k[:, :, 0], state)[1]


def activated(state: torch.Tensor) -> torch.Tensor:
    """sign(S) GELU(|S|): a GELU of the state itself would forget what is stored with a minus (TPTT, arXiv 2506.17671)."""
    return state.sign() * F.gelu(state.abs())
