"""What a memory is given of some tokens, what it makes of them to write, and what goes on from call to call.

Legend: B batch, T tokens, H heads, Hk key/value heads, K feature width, D width of a head's keys, V of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from tptt.ops import delta_rule, linear_attention

from .tptt_modes import run_activated

Function = Callable[[torch.Tensor], torch.Tensor]


class LayerState(NamedTuple):
    """What a layer carries from call to call.

    Args:
        memory: the state [B, H, K, V], float32; None is an empty memory.
        history: [B, M, Hk, D + V] raw keys and values of the last real tokens, where the operator looks at them.
        seen: [B] number of real tokens so far, where the operator counts them.
    """

    memory: torch.Tensor | None = None
    history: torch.Tensor | None = None
    seen: torch.Tensor | None = None


class Tokens(NamedTuple):
    """What a memory is given of T tokens: their hidden states and raw projections, narrow beside their features.

    Args:
        hidden: the layer's input, [B, T, hidden].
        k, v: [B, T, Hk, D] and [B, T, Hk, V].
        mask: [B, T] bool, False at padding; None: every token is real.
    """

    hidden: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None

    @property
    def length(self) -> int:
        """T."""
        return self.k.shape[1]

    def map(self, function: Function) -> Tokens:
        """``function`` of each tensor."""
        return Tokens(*(None if x is None else function(x) for x in self))  # type: ignore[arg-type]

    def cut(self, start: int, end: int) -> Tokens:
        """The tokens from ``start`` to before ``end``."""
        return self.map(lambda x: x[:, start:end])

    def then(self, after: Tokens) -> Tokens:
        """These tokens, and the ones ``after`` them."""
        masks = (None, None)
        if self.mask is not None or after.mask is not None:
            masks = (self._full_mask(), after._full_mask())
        first, second = self._replace(mask=masks[0]), after._replace(mask=masks[1])
        return Tokens(
            *(None if a is None else torch.cat([a, b.to(a.dtype)], 1) for a, b in zip(first, second, strict=True))
        )  # type: ignore[arg-type,union-attr]

    def _full_mask(self) -> torch.Tensor:
        if self.mask is not None:
            return self.mask
        return torch.ones(self.k.shape[:2], dtype=torch.bool, device=self.k.device)


class MemoryUpdate(NamedTuple):
    """What some tokens write.

    Args:
        k, v, beta: features of keys [B, T, H, K], values [B, T, H, V] and write strengths [B, T, H], with an axis of N
            virtual tokens after T where there are any, float32.
        g: natural log of the decay, [B, T, H] or per channel [B, T, H, K]; None: nothing is forgotten.
        delta: written by the delta rule, not by linear attention.
        real: [B, T] bool, False at padding; None: every token is real.
        history: what the next call sees of the raw tokens (`LayerState.history`).
        every: real tokens between two activations of the state (`tptt_modes.activated`); 0: it has none.
        seen: [B] real tokens before, where the operator counts them.
    """

    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    g: torch.Tensor | None
    delta: bool = True
    real: torch.Tensor | None = None
    history: torch.Tensor | None = None
    every: int = 0
    seen: torch.Tensor | None = None

    def run(
        self, q: torch.Tensor, state: torch.Tensor | None, output_final_state: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What q [B, T, H, K] reads, [B, T, H, V], and the state [B, H, K, V] afterwards, from ``state`` (None: zero);
        without output_final_state that may be None."""
        operator = delta_rule if self.delta else linear_attention
        if self.seen is None or not self.k.shape[1]:
            return operator(q, *self[:4], initial_state=state, output_final_state=output_final_state)
        return run_activated(operator, q, self[:4], self.real, self.seen, self.every, state)

    @property
    def seen_after(self) -> torch.Tensor | None:
        """Real tokens of each row, [B], these included."""
        if self.seen is None:
            return None
        return self.seen + (self.k.shape[1] if self.real is None else self.real.sum(1))

    def apply(self, state: torch.Tensor | None) -> torch.Tensor | None:
        """The state after this update, from ``state`` (None is zero)."""
        return self.run(self.k if self.k.dim() == 4 else self.k[:, :, 0], state)[1]
