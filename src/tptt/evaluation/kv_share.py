"""What the layers of a model hold of keys and values, as shares of what its base holds.

Measured on real caches of a few tokens, so that it holds for any family: grouped, latent, its own sliding windows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tptt.hf import memory_layers, softmax_as

from .perplexity import evaluating

_TOKENS = 2


@dataclass(frozen=True)
class LayerKV:
    """Bytes per sequence that one attention layer can hold after ``length`` tokens.

    Args:
        layer: its number.
        whole: keys and values with the base's own attention.
        window: with the window of its memory; None: it has no memory, or one without a window.
        state: the recurrent state of its memory, whatever the length; 0: it has none.
    """

    layer: int
    whole: int
    window: int | None
    state: int


@torch.no_grad()
def layer_kv(model: nn.Module, length: int) -> list[LayerKV]:
    """The bytes of every attention layer of ``model`` after ``length`` tokens, with a memory or without.

    A window of W holds W tokens while it decodes, the one just read included, and its sinks; between longer calls W - 1.

    Raises:
        ValueError: ``length`` is below 1.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length must be an integer of 1 or more, got {length!r}")
    carrying = {x.layer: x for x in memory_layers(model)}
    with softmax_as(model, whole=carrying):
        plain = _few_tokens(model)
    states = _few_tokens(model)
    found = []
    for number, layer in enumerate(plain.layers):
        if (keys := getattr(layer, "keys", None)) is None:
            continue  # linear attention, which holds none
        token = sum(x.numel() * x.element_size() for x in (keys, layer.values)) // _TOKENS
        own = getattr(layer, "sliding_window", None)
        whole = length if own is None else min(length, own - 1)  # what transformers' sliding layer keeps
        window, state = None, 0
        if (memory := carrying.get(number)) is not None:
            state = _state_bytes(states.layers[number])
            if memory.window is not None:
                window = min(length, memory.window + memory.sinks) * token
        found.append(LayerKV(number, whole * token, window, state))
    return found


def _few_tokens(model: nn.Module):
    """The cache after the first token of the vocabulary, twice."""
    with evaluating(model):
        device = next(model.parameters()).device
        ids = torch.zeros(1, _TOKENS, dtype=torch.long, device=device)
        return model(input_ids=ids, use_cache=True).past_key_values


def _state_bytes(layer) -> int:
    return sum(x.numel() * x.element_size() for x in (layer.state, layer.history, layer.seen) if x is not None)


def held_kv(kinds: Iterable[LayerKV], whole: Collection[int], none: Collection[int] = ()) -> int:
    """Bytes of keys and values in all where the layers numbered in ``whole`` keep their whole context, those in ``none``
    hold nothing, and the others their window, if they have one."""
    return sum(0 if x.layer in none else x.whole if x.layer in whole or x.window is None else x.window for x in kinds)


def kv_bytes(cache) -> int:
    """Bytes of the keys and values that ``cache`` holds now, sinks included, states and bookkeeping not."""
    total = 0
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        parts = [layer.keys, layer.values]
        if getattr(layer, "sinks", 0):
            parts += [layer._sink_keys, layer._sink_values]
        total += sum(x.numel() * x.element_size() for x in parts if x is not None)
    return total
