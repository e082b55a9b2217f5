"""What a model's cache holds after any number of tokens, computed from the model's shapes.

`CacheFormula` is the one computation of it, for plans, choices and reports. It reads the shapes off a call of two
tokens, so that it knows every family (grouped, latent and sparse attention, sliding windows, static caches, linear
attention beside it) and needs no weights: a model on the meta device will do. `measured_size` counts the tensors that a
real cache keeps alive, and tests compare the two.

What a window of W tokens with s sinks holds between two calls:
    after a call of several tokens, or before the window is full: min(T, W - 1) tokens, the ones the next token will see
    beside itself, and the sinks;
    while tokens come one by one: a ring of s + W tokens, sinks and the one just read included, whose oldest place the
    next one takes, so that a step copies nothing.
What the base's own sliding window of W holds: it shows W - 1 tokens, but those are a view of what the last call of n
tokens put together, min(T - n, W - 1) + n tokens, which stays in memory until the next call: W while tokens come one by
one.

Legend: T tokens read, n tokens of the last call, W window, s sinks, Hk key/value heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

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
from .cache_size import OF_WINDOW, CacheSize, LayerSize, bytes_of, cache_layers, held_as, tensors_in
from .compat import (
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
from .modes import in_eval_mode
from .read_with_cache import read_with_cache
from .slots import patched_attention, slot_of
from .teacher import softmax_as

_FEW = 2
"""Tokens of the call whose shapes are read."""


@dataclass(frozen=True)
class LayerFormula:
    """What one layer of a cache holds, as a function of the tokens read.

    Args:
        layer: its number.
        kind: the class of the cache layer.
        per_token: bytes of one token's keys, values and indexer keys.
        window: W of a layer that has one.
        sinks: s.
        ring: tokens that come one by one go through the ring of `WindowLayer`. They do not where a call has said which
            tokens are padding, or would have to be asked (a mask on a GPU), nor beside ALiBi biases; then W - 1 tokens
            and the sinks stay, and W + s are there during a call.
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
        grown = _RULES[self.kind](self, tokens, last_call)
        return LayerSize(
            self.layer,
            *(getattr(self.constant, f.name) + getattr(grown, f.name) for f in fields(LayerSize) if f.name != "layer"),
        )


@dataclass(frozen=True)
class CacheFormula:
    """What the cache of a model holds for one sequence, as a function of the tokens read. Holds for rows without
    padding whose past is not recorded; `measured_size` counts what those keep as well."""

    layers: tuple[LayerFormula, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, base: bool = False, cache: Any = None) -> CacheFormula:
        """Read off a call of two tokens through ``model``, which may lie on the meta device.

        Args:
            model: a causal language model, with a memory or without.
            base: of the base's own attention: without the memory and its window.
            cache: an empty cache of the kind that is to be counted, such as a StaticCache; None is the one that the
                model makes for itself.

        Raises:
            ValueError: the model keeps no cache, or one with a layer of a kind whose size is not known here.
        """
        whole = [slot_of(m).layer for m in patched_attention(model)] if base else []
        alibi = {slot_of(m).layer for m in patched_attention(model) if "alibi" in slot_of(m).parameters}
        with in_eval_mode(model), softmax_as(model, whole=whole):
            ids = torch.zeros(1, _FEW, dtype=torch.long, device=next(model.parameters()).device)
            _, found = read_with_cache(model, ids, cache)
        return cls(tuple(_formula(i, layer, i in alibi) for i, layer in enumerate(cache_layers(found))))

    def after(self, tokens: int, last_call: int = 1) -> CacheSize:
        """The size after ``tokens`` tokens.

        Args:
            tokens: T, 1 or more.
            last_call: n, tokens of the last call: 1 while tokens come one by one, ``tokens`` after a prompt in one
                call.

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
    """The number of tokens from which on the ``converted`` model's cache is smaller than its ``base``'s, while tokens
    come one by one; None: it is not at ``most`` tokens.

    With a window of W in every layer and nothing else that bounds the base's cache it is about W + state bytes / base
    bytes per token (`state_in_tokens`).
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
    """How many tokens' keys and values of the ``base`` take as much memory as the states of the ``converted`` model:
    state bytes / base bytes per token. 0 without a memory; infinite for a base that keeps no keys."""
    states = converted.after(1).memory_bytes
    return states / base.per_token if base.per_token else float("inf") if states else 0.0


# ---- the kinds of cache layers ------------------------------------------------------------------------------------


def _growing(layer: LayerFormula, tokens: int, last_call: int) -> LayerSize:
    return LayerSize(layer.layer, tokens, tokens * layer.per_token)


def _sliding(layer: LayerFormula, tokens: int, last_call: int) -> LayerSize:
    before = _window(layer) - 1
    return LayerSize(layer.layer, min(tokens, before), (min(tokens - last_call, before) + last_call) * layer.per_token)


def _windowed(layer: LayerFormula, tokens: int, last_call: int) -> LayerSize:
    window, sinks = _window(layer), layer.sinks
    recent = min(tokens, window - 1)
    bookkeeping = 2 * recent + 8 * sinks  # real and sink, a byte each per recent token; int64 places of the sinks
    if layer.ring and last_call == 1 and tokens >= window + sinks:
        return LayerSize(layer.layer, window, (sinks + window) * layer.per_token, bookkeeping=bookkeeping)
    return LayerSize(layer.layer, recent, recent * layer.per_token, sinks * layer.per_token, bookkeeping=bookkeeping)


def _nothing(layer: LayerFormula, tokens: int, last_call: int) -> LayerSize:
    return LayerSize(layer.layer)


def _window(layer: LayerFormula) -> int:
    assert layer.window is not None
    return layer.window


_RULES: dict[type, Callable[[LayerFormula, int, int], LayerSize]] = {
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
    keys = [] if kind in _KEEP_NOTHING else list(tensors_in(held_as(layer, "keys_values")))
    if _RULES[kind] is _growing and (found := layer.keys.shape[2]) != _FEW:
        raise ValueError(f"cache layer {number} keeps {found} positions of {_FEW} tokens: its size is not known")
    constant = {part: bytes_of(held_as(layer, part)) for part in ("state", "history", "base_states")}
    constant["bookkeeping"] = bytes_of(held_as(layer, "bookkeeping")) - bytes_of(
        [vars(layer).get(x) for x in OF_WINDOW]
    )
    if isinstance(layer, StaticLayer):
        constant |= {"entries": layer.keys.shape[2], "keys_values": bytes_of(keys)}
    return LayerFormula(
        number,
        kind,
        sum(_of_one_token(x) for x in keys),
        getattr(layer, "sliding_window", None),
        getattr(layer, "sinks", 0),
        not (getattr(layer, "_padded", False) or alibi),
        LayerSize(number, **constant),
    )


def _of_one_token(x: torch.Tensor) -> int:
    """Bytes of one token in keys [1, Hk, n, D], or in an indexer's [1, n, D]; n may be 0."""
    return math.prod(x.shape[:-2]) * x.shape[-1] * x.element_size()
