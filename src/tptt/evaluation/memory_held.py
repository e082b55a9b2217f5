"""What a cache holds, measured on the cache itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .perplexity import evaluating


@dataclass(frozen=True)
class Held:
    """After ``tokens`` tokens of one sequence: bytes of the tensors in the cache, keys kept per layer (the most)."""

    tokens: int
    bytes: int
    entries: int


def _tensors(value) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def cache_bytes(cache) -> int:
    """Bytes of memory that the tensors of ``cache`` keep alive: keys, values, recurrent states and bookkeeping."""
    storages = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in _tensors(value):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def kv_entries(cache) -> int:
    """Keys kept per sequence in the layer that keeps most."""
    return max((layer.keys.shape[2] for layer in cache.layers if layer.is_initialized), default=0)


def memory_held(model, ids: torch.Tensor, lengths: Iterable[int], chunk: int = 256) -> list[Held]:
    """Read ``ids`` [n] in pieces of ``chunk`` tokens with a cache and measure it at each of ``lengths``, ascending.

    Raises:
        ValueError: ``ids`` is shorter than the largest length.
    """
    lengths = sorted(set(lengths))
    if len(ids) < lengths[-1]:
        raise ValueError(f"memory_held reads {lengths[-1]} tokens, got {len(ids)}")
    cache, done, found = DynamicCache(), 0, []
    with evaluating(model):
        for length in lengths:
            while done < length:
                end = min(done + chunk, length)
                piece = ids[None, done:end].to(model.device)
                model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
                done = end
            found.append(Held(length, cache_bytes(cache), kv_entries(cache)))
    return found
