"""The way back for a cache when a call fails in the middle."""

from __future__ import annotations

import copy
from typing import Any

import torch

_GROWING = ("keys", "values", "indexer_keys")
"""Of an unbounded layer: [..., T, D], tokens are only ever added at the end of T."""


class RollbackPoint:
    """What ``cache`` holds now, to go back to while it is only added to.

    What is of fixed size is copied; of keys and values that grow, the length is noted. The cost is the same however
    long the conversation is.
    """

    def __init__(self, cache) -> None:
        self._cache, self._layers = cache, []
        for layer in cache.layers:
            lengths, rest = {}, {}
            for name, value in vars(layer).items():
                if name in _GROWING and isinstance(value, torch.Tensor) and not hasattr(layer, "sliding_window"):
                    lengths[name] = value.shape[-2] if value.dim() > 1 else 0
                else:
                    rest[name] = value
            self._layers.append((lengths, copy.deepcopy(rest)))

    def go_back(self) -> None:
        """Once: the copies become the cache's own."""
        for layer, (lengths, rest) in zip(self._cache.layers, self._layers, strict=True):
            held: dict[str, Any] = vars(layer)
            grown = {name: held[name][..., :length, :] for name, length in lengths.items()}
            held.clear()
            held.update(rest | grown)
