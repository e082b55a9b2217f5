"""LinearAttention: the memory as a layer of its own, for models written from scratch.

Legend: B batch, T tokens, H heads, Hk key/value heads, D head width, K feature width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tptt.config import MemoryConfig
from tptt.ops.dtypes import without_autocast

from .linear_memory import LinearMemory
from .update import LayerState, Tokens


class LinearAttention(nn.Module):
    """Attention whose whole past is a state of fixed size; no softmax, no positions, no key/value cache.

    Projections to queries, keys and values without bias, the memory of ``config``, a projection back.

    Args:
        hidden_size: width of input and output.
        num_heads: query heads, H; the head width is ``hidden_size // num_heads``.
        num_key_value_heads: key/value heads; None is ``num_heads``.
        config: the recurrence, its features and gates (`MemoryConfig`; what concerns softmax attention does not apply).
        bidirectional: the mean of a reading from the left and one from the right, for encoders.

    Raises:
        ValueError: ``hidden_size`` is no multiple of ``num_heads``, or ``num_heads`` none of ``num_key_value_heads``,
            or one is below 1.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_key_value_heads: int | None = None,
        config: MemoryConfig | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        num_key_value_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if (
            min(hidden_size, num_heads, num_key_value_heads) < 1
            or hidden_size % num_heads
            or num_heads % num_key_value_heads
        ):
            raise ValueError(
                "hidden_size must be a multiple of num_heads and num_heads one of num_key_value_heads, all at least 1, "
                f"got {hidden_size}, {num_heads}, {num_key_value_heads}"
            )
        config = config or MemoryConfig()
        if bidirectional:
            config = replace(config, bidirectional=True)
        self.head_dim = hidden_size // num_heads
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, num_key_value_heads * self.head_dim, bias=False)
        self.value = nn.Linear(hidden_size, num_key_value_heads * self.head_dim, bias=False)
        self.output = nn.Linear(hidden_size, hidden_size, bias=False)
        self.memory = LinearMemory(config, hidden_size, num_heads, num_key_value_heads, self.head_dim)
        self.memory.mix_gate = nn.Identity()  # nothing to mix with

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None, state: LayerState | None = None
    ) -> tuple[torch.Tensor, LayerState | None]:
        """Output [B, T, hidden_size] for an input of the same shape, and the state to go on from.

        Args:
            hidden_states: [B, T, hidden_size].
            mask: [B, T] bool, False at padding: nothing is written or forgotten there; None is no padding.
            state: what an earlier call returned; None is an empty memory.

        Raises:
            ValueError: a ``state`` is given to a bidirectional layer, whose reading from the right has none.
        """
        x, after = hidden_states, None
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.query, self.key, self.value))
        tokens = Tokens(x, k, v, mask)
        with without_autocast(x.device.type):
            if not self.memory.config.bidirectional:
                out, after = self.memory.advance(q, tokens, state or LayerState())
            elif state is None:
                out = self.memory(q, tokens)
            else:
                raise ValueError("a bidirectional layer reads whole sequences: it takes no state and returns none")
        return self.output(out.flatten(2).to(x.dtype)), after
