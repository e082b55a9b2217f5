"""What a cache holds, layer by layer: computed for any number of tokens from a model's shapes, or measured on a cache.

`CacheFormula` is the one computation. It reads the shapes off a call of two tokens, so that it knows every family (grouped,
latent and sparse attention, sliding windows, static caches, linear attention beside it) and needs no weights: a model on the
meta device will do. `measured_size` counts the tensors that a real cache keeps alive, and tests compare the two.

What a window of W tokens with s sinks holds between two calls:
    after a call of several tokens, or before the window is full: min(T, W - 1) tokens, the ones the next token will see beside
    itself, and the sinks;
    while tokens come one by one: a ring of s + W tokens, the one just read included, which the next one overwrites in place,
    and the sinks once more beside it.
What the base's own sliding window of W holds: it shows W - 1 tokens, but those are a view of what the last call of n tokens
put together, min(T - n, W - 1) + n tokens, which stays in memory until the next call: W while tokens come one by one.

Legend: T tokens read, n tokens of the last call, W window, s sinks, Hk key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer,
    LinearAttentionLayer,
    StaticIndexedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from .cache import (
    MemoryFull,
    MemoryHybrid,
    MemoryHybridSliding,
    MemoryIndexed,
    MemoryOnly,
    MemorySliding,
    MemoryStatic,
    MemoryStaticSliding,
    MemoryWindow,
)
from .slots import patched_attention, slot_of
from .teacher import softmax_as

_FEW = 2
"""Tokens of the call whose shapes are read."""


@dataclass(frozen=True)
class LayerSize:
    """Bytes that one layer of a cache keeps in memory.

    Args:
        layer: its number.
        positions: tokens per sequence whose keys the next token can see, sinks not counted; of a static layer its length.
        keys_values: keys and values, and the keys of an indexer (sparse attention).
        sinks: keys and values of the first tokens that a window keeps.
        state: the memory's recurrent state.
        history: raw keys and values of the last tokens, for a memory that looks at them, and their count.
        base_states: convolution and recurrent states of the base's own linear attention.
        bookkeeping: which kept tokens are real, the places of the sinks, counters.
        recorded: what is kept to take tokens back (`Cache.activate_past_recording`).
    """

    layer: int
    positions: int = 0
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


PARTS = tuple(f.name for f in fields(LayerSize) if f.name not in ("layer", "positions"))
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
    def positions(self) -> int:
        """Tokens that the layer which keeps most shows to the next one."""
        return max((x.positions for x in self.layers), default=0)


@dataclass(frozen=True)
class LayerFormula:
    """What one layer of a cache holds, as a function of the tokens read.

    Args:
        layer: its number.
        kind: the class of the cache layer.
        per_token: bytes of one token's keys, values and indexer keys.
        window: W of a layer that has one.
        sinks: s.
        ring: tokens that come one by one go through the ring of `WindowLayer`; not where the family says for every call which
            tokens are real, or has ALiBi biases.
        constant: what does not depend on the tokens.
    """

    layer: int
    kind: type
    per_token: int
    window: int | None
    sinks: int
    ring: bool
    constant: LayerSize

    def after(self, tokens: int, last_call: int = 1) -> LayerSize:
        """The size after ``tokens`` tokens, the last ``last_call`` of which came in one call."""
        shown, kept, bookkeeping = _RULES[self.kind](self, tokens, last_call)
        more = {"positions": shown, "keys_values": kept * self.per_token, "bookkeeping": bookkeeping}
        return replace(self.constant, **{k: getattr(self.constant, k) + v for k, v in more.items()})


@dataclass(frozen=True)
class CacheFormula:
    """What the cache of a model holds for one sequence, as a function of the tokens read. Holds for rows without padding whose
    past is not recorded; `measured_size` counts what those keep as well."""

    layers: tuple[LayerFormula, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, base: bool = False, cache: Any = None) -> CacheFormula:
        """Read off a call of two tokens through ``model``, which may lie on the meta device.

        Args:
            model: a causal language model, with a memory or without.
            base: of the base's own attention: without the memory and its window.
            cache: an empty cache of the kind that is to be counted, such as a StaticCache; None is the one that the model
                makes for itself.

        Raises:
            ValueError: the model keeps no cache, or one with a layer of a kind whose size is not known here.
        """
        layers = [slot_of(m).layer for m in patched_attention(model)] if base else []
        options = {} if cache is None else {"past_key_values": cache}
        training = [(m, m.training) for m in model.modules()]
        model.eval()
        try:
            with softmax_as(model, whole=layers):
                ids = torch.zeros(1, _FEW, dtype=torch.long, device=next(model.parameters()).device)
                found = model(input_ids=ids, use_cache=True, **options).past_key_values
        finally:
            for module, was in training:
                module.training = was
        if found is None:
            raise ValueError(f"{type(model).__name__} keeps no cache")
        alibi = {slot.layer for m in patched_attention(model) if "alibi" in (slot := slot_of(m)).parameters}
        return cls(tuple(_formula(i, layer, i in alibi) for i, layer in enumerate(_layers(found))))

    def after(self, tokens: int, last_call: int = 1) -> CacheSize:
        """The size after ``tokens`` tokens.

        Args:
            tokens: T, 1 or more.
            last_call: n, tokens of the last call: 1 while tokens come one by one, ``tokens`` after a prompt in one call.

        Raises:
            ValueError: a number is below 1, or more tokens came in the last call than in all.
        """
        for name, value in (("tokens", tokens), ("last_call", last_call)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
        if last_call > tokens:
            raise ValueError(f"last_call must be {tokens} at most, the number of tokens, got {last_call}")
        return CacheSize(tokens, tuple(x.after(tokens, last_call) for x in self.layers))

    @property
    def per_token(self) -> int:
        """Bytes of the keys and values of one token in all layers that keep any."""
        return sum(x.per_token for x in self.layers if x.kind not in _KEEP_NOTHING)


def break_even(base: CacheFormula, converted: CacheFormula, most: int = 1 << 24) -> int | None:
    """The number of tokens from which on the ``converted`` model's cache is smaller than its ``base``'s, while tokens come one by
    one; None: it is not at ``most`` tokens.

    With a window of W in every layer and nothing else that bounds the base's cache it is about W + state bytes / base bytes
    per token (`state_in_tokens`).
    """

    def smaller(tokens: int) -> bool:
        return converted.after(tokens).bytes < base.after(tokens).bytes

    if not smaller(most):
        return None
    low, high = 0, most  # not smaller at ``low``, smaller at ``high``; the difference rises once the windows are full
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if smaller(middle) else (middle, high)
    return high


def state_in_tokens(base: CacheFormula, converted: CacheFormula) -> float:
    """How many tokens' keys and values of the ``base`` take as much memory as the states of the ``converted`` model: state bytes
    / base bytes per token. 0 without a memory; infinite for a base that keeps no keys."""
    states = converted.after(1).memory_bytes
    return states / base.per_token if base.per_token else float("inf") if states else 0.0


# ---- the kinds of cache layers ------------------------------------------------------------------------------------

Kept = tuple[int, int, int]
"""Tokens that are shown, tokens that are kept, and bytes of bookkeeping."""


def _growing(layer: LayerFormula, tokens: int, last_call: int) -> Kept:
    return tokens, tokens, 0


def _sliding(layer: LayerFormula, tokens: int, last_call: int) -> Kept:
    before = _window(layer) - 1
    return min(tokens, before), min(tokens - last_call, before) + last_call, 0


def _windowed(layer: LayerFormula, tokens: int, last_call: int) -> Kept:
    window, sinks = _window(layer), layer.sinks
    recent = min(tokens, window - 1)
    bookkeeping = 2 * recent + 8 * sinks  # real and sink, a byte each per recent token; int64 places of the sinks
    if layer.ring and last_call == 1 and tokens - 1 >= window - 1 + sinks:
        return window, sinks + window, bookkeeping
    return recent, recent, bookkeeping


def _nothing(layer: LayerFormula, tokens: int, last_call: int) -> Kept:
    return 0, 0, 0


def _window(layer: LayerFormula) -> int:
    assert layer.window is not None
    return layer.window


_RULES: dict[type, Callable[[LayerFormula, int, int], Kept]] = {
    DynamicLayer: _growing,
    DynamicIndexedLayer: _growing,
    DynamicSlidingWindowLayer: _sliding,
    LinearAttentionAndFullAttentionLayer: _growing,
    LinearAttentionAndSlidingWindowAttentionLayer: _sliding,
    LinearAttentionLayer: _nothing,
    DummyLayer: _nothing,
    StaticLayer: _nothing,  # what it holds does not depend on the tokens
    StaticIndexedLayer: _nothing,
    StaticSlidingWindowLayer: _nothing,
    LinearAttentionAndStaticFullAttentionLayer: _nothing,
    LinearAttentionAndStaticSlidingWindowAttentionLayer: _nothing,
    MemoryFull: _growing,
    MemoryIndexed: _growing,
    MemorySliding: _sliding,
    MemoryHybrid: _growing,
    MemoryHybridSliding: _sliding,
    MemoryWindow: _windowed,
    MemoryOnly: _nothing,
    MemoryStatic: _nothing,
    MemoryStaticSliding: _nothing,
}
_KEEP_NOTHING = (LinearAttentionLayer, DummyLayer, MemoryOnly)


def _formula(number: int, layer: Any, alibi: bool) -> LayerFormula:
    kind = type(layer)
    if kind not in _RULES:
        raise ValueError(
            f"cache layer {number} is a {kind.__name__}, whose size is not known; known are "
            f"{', '.join(x.__name__ for x in _RULES)}"
        )
    keys = [] if kind in _KEEP_NOTHING else list(_tensors(_values(layer, "keys_values")))
    if _RULES[kind] is _growing and (found := layer.keys.shape[2]) != _FEW:
        raise ValueError(f"cache layer {number} keeps {found} positions of {_FEW} tokens: its size is not known")
    constant = {part: _bytes(_values(layer, part)) for part in ("sinks", "state", "history", "base_states")}
    constant["bookkeeping"] = _bytes(_values(layer, "bookkeeping")) - _bytes([vars(layer).get(x) for x in _OF_WINDOW])
    if isinstance(layer, StaticLayer):
        constant |= {"positions": layer.keys.shape[2], "keys_values": _bytes(keys)}
    return LayerFormula(
        number, kind, sum(x[:, ..., :1, :].nbytes for x in keys), getattr(layer, "sliding_window", None),
        getattr(layer, "sinks", 0), not (getattr(layer, "_padded", False) or alibi), LayerSize(number, **constant),
    )  # fmt: skip


# ---- the tensors of a cache ---------------------------------------------------------------------------------------

_HELD_AS: dict[str, str] = {
    "keys": "keys_values", "values": "keys_values", "_ring": "keys_values", "indexer_keys": "keys_values",
    "_sink_keys": "sinks", "_sink_values": "sinks", "state": "state", "history": "history", "seen": "history",
    "conv_states": "base_states", "recurrent_states": "base_states", "waiting": "recorded",
}  # fmt: skip
"""Part of a layer's size by attribute; every other tensor is bookkeeping."""
_OF_WINDOW = ("_valid", "_is_sink", "_sink_slots")
"""Bookkeeping that grows with the tokens kept (`_windowed`)."""


def measured_size(cache: Any, tokens: int | None = None) -> CacheSize:
    """What ``cache`` keeps in memory now: every storage that its tensors hold on to, once and whole.

    A storage is counted whole where a tensor is a view of a part of it. A static layer's length counts as positions.

    Args:
        cache: a cache, on a device that holds numbers; of an encoder-decoder's the self-attention part.
        tokens: what to note as read; None is what the cache says.

    Raises:
        ValueError: it lies on the meta device, where nothing is held.
    """
    seen: set[tuple[torch.device, int]] = set()
    layers = []
    for number, layer in enumerate(_layers(cache)):
        sizes = dict.fromkeys(PARTS, 0)
        for part in PARTS:
            sizes[part] += _held(_values(layer, part), seen)
        keys = getattr(layer, "keys", None)
        positions = keys.shape[2] if isinstance(keys, torch.Tensor) and keys.ndim == 4 else 0
        layers.append(LayerSize(number, positions, **sizes))
    return CacheSize(int(cache.get_seq_length()) if tokens is None else tokens, tuple(layers))


def _layers(cache: Any) -> list[Any]:
    return getattr(cache, "self_attention_cache", cache).layers


def _values(layer: Any, part: str) -> list[Any]:
    """The attributes of ``layer`` that make up ``part``."""
    return [value for name, value in vars(layer).items() if _HELD_AS.get(name, "bookkeeping") == part]


def _held(values: list[Any], seen: set[tuple[torch.device, int]]) -> int:
    """Bytes of the storages behind the tensors in ``values`` that are not among those ``seen``, which they join."""
    total = 0
    for tensor in _tensors(values):
        if tensor.is_meta:
            raise ValueError("a cache on the meta device holds nothing: use CacheFormula")
        storage = tensor.untyped_storage()
        place = (tensor.device, storage.data_ptr())
        if place not in seen:
            seen.add(place)
            total += storage.nbytes()
    return total


def _bytes(values: list[Any]) -> int:
    return sum(x.nbytes for x in _tensors(values))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in ``value``: in lists, tuples, dicts and the attributes of objects within."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        yield from _tensors(vars(value))
