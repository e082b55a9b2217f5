"""Decays that begin at the base's own reach. Legend: B rows, T tokens, H heads, S states."""

from __future__ import annotations

import torch
from torch import nn

from tptt.data import pack_rows, stdlib_text, tokenize
from tptt.hf import as_base, memories
from tptt.hf.compat import attention_implementation
from tptt.train.base import load_tokenizer

_ROWS = 4


def mean_distances(attention: torch.Tensor) -> torch.Tensor:
    """Mean number of tokens, [H], that the weights ``attention`` [B, H, T, T] of causal heads reach back."""
    place = torch.arange(attention.shape[-1], device=attention.device, dtype=attention.dtype)
    return (attention * (place[:, None] - place)).sum(-1).mean((0, 2))


@torch.no_grad()
def half_life_by_distance(model: nn.Module, length: int = 512) -> None:
    """Begin decays so that half of a state is left after as many tokens as the base's heads look back on average."""
    ids = tokenize(load_tokenizer(model.config), stdlib_text().train, _ROWS * length + 1)
    base = model.backbone.get_base_model()
    before = attention_implementation(base.config)
    base.set_attn_implementation("eager")  # the one that gives out its weights
    try:
        with as_base(model):
            rows = pack_rows(ids, length).to(model.device)
            found = model(input_ids=rows, use_cache=False, output_attentions=True).attentions
    finally:
        base.set_attn_implementation(before)
    for memory, attention in zip(memories(model), found, strict=True):
        tokens = mean_distances(attention.float()).unflatten(0, (memory.num_states, -1)).mean(1)
        memory.decay_gate.bias.copy_(torch.logit(2 ** (-1 / tokens)))
