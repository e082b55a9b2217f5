"""Sinks at a clamped distance. Legend: B batch, H query heads, T tokens, D head width."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import rotate_half

from tptt.hf import memory_layers
from tptt.hf.compat import config_with_attention
from tptt.hf.window_attention import Band

_NAME = "clamped_sinks"


def clamped_sinks(model: nn.Module) -> None:
    """Keep sinks at most as far away as window and sinks are wide, in bases with rotary positions of Llama's kind.

    Keys of sinks meet queries that are turned back to the position at which the window begins to leave sinks behind, as
    in a cache that numbers what it holds (StreamingLLM, arXiv 2309.17453). This is for whole sequences only: no cache
    knows of it.
    """
    (frequencies,) = [m.inv_freq for m in model.modules() if hasattr(m, "inv_freq")]
    layers = memory_layers(model)
    sinks, last = layers[0].sinks, layers[0].sinks + layers[0].window - 1

    def attend(module: nn.Module, query, key, value, attention_mask, scaling: float, **more: Any):
        """Attention over doubled channels: every key is zero where the queries that it is not meant for are."""
        if isinstance(attention_mask, Band):
            attention_mask = attention_mask.dense(len(query), query.shape[2], query.device)
        positions = torch.arange(query.shape[2], device=query.device)
        angles = (positions.clamp(max=last) - positions)[:, None] * torch.cat([frequencies, frequencies])
        turned = query * angles.cos() + rotate_half(query) * angles.sin()
        is_sink = (positions < sinks)[:, None]
        queries = torch.cat([query, turned], -1)
        keys = torch.cat([key.masked_fill(is_sink, 0), key.masked_fill(~is_sink, 0)], -1)
        return sdpa_attention_forward(module, queries, keys, value, attention_mask, scaling=scaling, **more)

    AttentionInterface.register(_NAME, attend)
    for module in (x.attention for x in layers):
        module.config = config_with_attention(module.config, _NAME)
