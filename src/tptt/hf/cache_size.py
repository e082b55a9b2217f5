"""What a cache holds, layer by layer, in bytes; and its measurement on a real cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LayerSize:
    """Bytes that one layer of a cache keeps in memory.

    Args:
        layer: its number.
        entries: tokens per sequence whose keys are there for the next one, sinks not counted; of a static layer its
            length.
        keys_values: keys and values, and the keys of an indexer (sparse attention).
        sinks: keys and values of the first tokens that a window keeps; 0 while they lie in its ring.
        state: the memory's recurrent state.
        history: raw keys and values of the last tokens, for a memory that looks at them, and their count.
        base_states: convolution and recurrent states of the base's own linear attention.
        bookkeeping: which kept tokens are real, the places of the sinks, counters.
        recorded: what is kept to take tokens back (`Cache.activate_past_recording`).
    """

    layer: int
    entries: int = 0
    keys_values: int = 0
    sinks: int = 0
    state: int = 0
    history: int = 0
    base_states: int = 0
    bookkeeping: int = 0
    recorded: int = 0

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def kv_bytes(self) -> int:
        """Keys and values, sinks included."""
        return self.keys_values + self.sinks

    @property
    def memory_bytes(self) -> int:
        """What the memory keeps of its own, whatever the number of tokens."""
        return self.state + self.history


PARTS = tuple(f.name for f in fields(LayerSize) if f.name not in ("layer", "entries"))
"""What the bytes of a layer are made of."""


@dataclass(frozen=True)
class CacheSize:
    """What a cache holds after ``tokens`` tokens of one sequence (or of each row of a batch), layer by layer."""

    tokens: int
    layers: tuple[LayerSize, ...]

    @property
    def bytes(self) -> int:
        """All that the cache keeps in memory."""
        return sum(x.bytes for x in self.layers)

    @property
    def kv_bytes(self) -> int:
        """Keys and values, sinks included."""
        return sum(x.kv_bytes for x in self.layers)

    @property
    def memory_bytes(self) -> int:
        """The memories' states and histories."""
        return sum(x.memory_bytes for x in self.layers)

    @property
    def entries(self) -> int:
        """Keys per head and sequence in the layer that keeps most."""
        return max((x.entries for x in self.layers), default=0)


_HELD_AS: dict[str, str] = {
    "keys": "keys_values",
    "values": "keys_values",
    "_ring": "keys_values",
    "indexer_keys": "keys_values",
    "_sink_keys": "sinks",
    "_sink_values": "sinks",
    "state": "state",
    "history": "history",
    "seen": "history",
    "conv_states": "base_states",
    "recurrent_states": "base_states",
    "waiting": "recorded",
}
"""Part of a layer's size by attribute; every other tensor is bookkeeping."""
OF_WINDOW = ("_valid", "_is_sink", "_sink_slots")
"""Bookkeeping that grows with the tokens kept (`_windowed`)."""


def measured_size(cache: Any, tokens: int | None = None) -> CacheSize:
    """What ``cache`` keeps in memory now: every storage that its tensors hold on to, once and whole.

    A storage is counted whole where a tensor is a view of a part of it. A static layer's length counts as entries.

    Args:
        cache: a cache, on a device that holds numbers; of an encoder-decoder's the self-attention part.
        tokens: what to note as read; None is what the cache says.

    Raises:
        ValueError: it lies on the meta device, where nothing is held.
    """
    seen: set[tuple[torch.device, int]] = set()
    layers = []
    for number, layer in enumerate(cache_layers(cache)):
        sizes = dict.fromkeys(PARTS, 0)
        for part in PARTS:
            sizes[part] += _held(held_as(layer, part), seen)
        keys = getattr(layer, "keys", None)
        entries = keys.shape[2] if isinstance(keys, torch.Tensor) and keys.ndim == 4 else 0
        layers.append(LayerSize(number, entries, **sizes))
    return CacheSize(int(cache.get_seq_length()) if tokens is None else tokens, tuple(layers))


def cache_layers(cache: Any) -> list[Any]:
    return getattr(cache, "self_attention_cache", cache).layers


def held_as(layer: Any, part: str) -> list[Any]:
    """The attributes of ``layer`` that make up ``part``."""
    return [value for name, value in vars(layer).items() if _HELD_AS.get(name, "bookkeeping") == part]


def _held(values: list[Any], seen: set[tuple[torch.device, int]]) -> int:
    """Bytes of the storages behind the tensors in ``values`` that are not among those ``seen``, which they join."""
    total = 0
    for tensor in tensors_in(values):
        if tensor.is_meta:
            raise ValueError("a cache on the meta device holds nothing: use CacheFormula")
        storage = tensor.untyped_storage()
        place = (tensor.device, storage.data_ptr())
        if place not in seen:
            seen.add(place)
            total += storage.nbytes()
    return total


def bytes_of(values: list[Any]) -> int:
    return sum(x.nbytes for x in tensors_in(values))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in ``value``: in lists, tuples, dicts and the attributes of objects within."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        yield from tensors_in(vars(value))
