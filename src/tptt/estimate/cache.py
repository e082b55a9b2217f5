"""What the cache of a converted model holds, counted on its modules: no weights are needed."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from tptt.hf import find_attention, memory_layers


def cache_bytes(model, tokens: int, element: int) -> tuple[int, int]:
    """Bytes of keys, values and states of one sequence after ``tokens`` tokens, (base, converted model).

    Args:
        model: a converted model, on any device.
        tokens: read so far.
        element: bytes of a key's number; a state is float32.
    """
    base = converted = 0
    memories = {x.attention: x for x in memory_layers(model)}
    body = model.inner.config
    for found in find_attention(model.inner.base_model):
        module, geometry = found.module, found.sizes
        per_token = geometry.kv_heads * (geometry.head_dim + geometry.value_dim) * element
        own = per_token * min(tokens, _sliding(module, body, found.layer) or tokens)
        base += own
        if (carrying := memories.get(module)) is None:
            converted += own
            continue
        branch, kept = carrying.memory, own // per_token
        if not carrying.has_softmax:
            kept = 0
        elif carrying.window is not None:
            kept = min(tokens, carrying.window + carrying.sinks)
        state = 4 * branch.num_states * branch.key_features.width * branch.value_dim
        converted += kept * per_token + state
    return base, converted


def _sliding(module: nn.Module, config: PreTrainedConfig, layer: int) -> int | None:
    """Keys that the base's own sliding window keeps; None: it has none."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if not window or (kinds and kinds[layer] != "sliding_attention"):
        return None
    return window - 1
