"""Truncated backpropagation through time: a row is read in chunks, its cache goes on, gradients do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import Cache, DynamicCache

CACHE, BASE_CACHE = "model_cache", "base_cache"
"""Keys of a chunk's inputs under which the caches of the model and of its teacher travel."""


def new_cache(model: Any) -> Cache:
    """An empty cache for ``model``."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def chunks_of(inputs: Mapping[str, torch.Tensor], count: int) -> Iterator[dict[str, torch.Tensor]]:
    """``inputs`` [B, T, ...] cut into ``count`` chunks of T / ``count`` tokens. A chunk's ``attention_mask`` reaches
    from the first token of the row, as models with a cache take it.

    Raises:
        ValueError: the rows cannot be cut into ``count`` chunks of one length.
    """
    tokens = next(iter(inputs.values())).shape[1]
    if tokens % count:
        raise ValueError(f"rows of {tokens} tokens cannot be cut into tbptt_chunks={count} of equal length")
    size = tokens // count
    for end in range(size, tokens + 1, size):
        starts = {name: 0 if name == "attention_mask" else end - size for name in inputs}
        yield {name: x[:, starts[name] : end] for name, x in inputs.items()}


def end_gradients(cache: Cache) -> None:
    """Cut keys, values and states in ``cache`` off from what computed them: the next chunk reads them as they are."""
    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                setattr(layer, name, value.detach())
