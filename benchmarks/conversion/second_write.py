"""DeltaProduct with a learned second write. Legend: B rows, T tokens, H states, D width of keys, V of values."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from tptt.hf import memories
from tptt.memory import LayerState, LinearMemory, MemoryUpdate, Tokens

_SELDOM = -3.0  # bias of the gate: .05 of a write at the start


class SecondWrite(nn.Module):
    """Key, value and strength of a token's second write. Key and value are linear maps of the first write's, which
    begin as the identity (DeltaProduct, arXiv 2502.10297, has a projection for each write)."""

    def __init__(self, memory: LinearMemory, hidden: int) -> None:
        super().__init__()
        if memory.num_states != memory.num_key_value_heads:
            raise ValueError("a second write is for one state per key/value head")
        self.of_keys, self.of_values = (
            nn.Parameter(torch.eye(w).repeat(memory.num_states, 1, 1)) for w in (memory.head_dim, memory.value_dim)
        )
        self.gate = nn.Linear(hidden, memory.num_states)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, _SELDOM)

    def forward(self, hidden: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None):
        """Key [B, T, H, D], value [B, T, H, V] and strength [B, T, H] for the layer's input and its k and v."""
        k, v = (torch.einsum("bthi,hij->bthj", x.float(), m) for x, m in ((k, self.of_keys), (v, self.of_values)))
        beta = torch.sigmoid(self.gate(hidden.float()))
        return k, v, beta if mask is None else beta * mask[..., None]


def _both(memory: LinearMemory, first, tokens: Tokens, before: LayerState | None = None) -> MemoryUpdate:
    """What ``first``, the memory's own `update`, makes of the tokens, and after each the second write."""
    update = first(tokens, before)
    k, v, beta = memory.second_write(*tokens)
    more = memory.key_features(k), v, beta
    k, v, beta = (torch.stack(pair, 2) for pair in zip(update[:3], more, strict=True))
    return update._replace(k=k, v=v, beta=beta)


def second_write(model: nn.Module) -> None:
    """Give every memory of ``model`` a learned second write; for whole sequences only, because no cache carries it."""
    for memory in memories(model):
        memory.second_write = SecondWrite(memory, memory.write_gate.weight.shape[1]).to(memory.output_scale.device)
        memory.update = partial(_both, memory, memory.update)
        memory.takes_one_call = False
