"""What a cache holds as it reads on, measured on the cache itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from tptt.hf.cache_size import CacheSize, measured_size
from tptt.hf.read_with_cache import read_with_cache

from .perplexity import evaluating


def cache_growth(model, ids: torch.Tensor, lengths: Iterable[int], chunk: int = 256) -> list[CacheSize]:
    """Read ``ids`` [n] in calls of ``chunk`` tokens with the cache that ``model`` makes, and measure it at each of
    ``lengths``, ascending.

    Raises:
        ValueError: ``ids`` is shorter than the largest length, or the model keeps no cache.
    """
    lengths = sorted(set(lengths))
    if len(ids) < lengths[-1]:
        raise ValueError(f"cache_growth reads {lengths[-1]} tokens, got {len(ids)}")
    cache: Any = None
    done, found = 0, []
    with evaluating(model):
        for length in lengths:
            while done < length:
                end = min(done + chunk, length)
                _, cache = read_with_cache(model, ids[None, done:end].to(model.device), cache, logits=1)
                done = end
            found.append(measured_size(cache, length))
    return found
