"""What one call of an operator carries from hand to hand: its tensors and its options.

Legend: B batch, T tokens, N writes per token, H key/value heads, G query heads per key/value head, K key width, V value
width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The tensors of a call, except its state."""

    q: Tensor  # [B, T, G*H, K]
    k: Tensor  # [B, T, H, K] or [B, T, N, H, K]
    v: Tensor  # [B, T, H, V] or [B, T, N, H, V]
    beta: Tensor | None  # [B, T, H] or [B, T, N, H]; None is 1
    g: Tensor | None  # [B, T, H] or [B, T, H, K]; None is no decay

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """`function` of each tensor."""
        return Inputs(*(x if x is None else function(x) for x in self))  # type: ignore[arg-type]

    def with_writes(self) -> Inputs:
        """The same with the axis of writes before H in k, v and beta, of size 1 where it was missing."""
        if self.k.dim() == 5:
            return self
        k, v, beta = (x if x is None else x.unsqueeze(2) for x in (self.k, self.v, self.beta))
        return self._replace(k=k, v=v, beta=beta)


class Call(NamedTuple):
    """One call of an operator."""

    inputs: Inputs
    initial_state: Tensor | None  # [B, H, K, V]; None is zero
    delta: bool  # the delta rule; False: linear attention
    scale: float
    output_final_state: bool = True
    chunk_size: int | None = None  # tokens
    inplace: bool = False  # overwrite initial_state
