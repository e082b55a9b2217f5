"""Cache layers that hold the recurrent state beside the keys and values.

Each class is a stock transformers layer with `MemoryState` on top, so that beam reordering, batch selection, reset and
roll-back move both. Offloading moves keys and values that grow; the state, which does not, stays on its device, as
transformers keeps the states of linear attention there.

Legend: B batch, T tokens, H query heads, Hs states, K feature width, V value width, W window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import Cache, DynamicCache

from tptt.config import MemoryConfig
from tptt.memory import LayerState, LinearMemory, Tokens

from .compat import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
    lazy_layers,
)
from .keyless_cache import KeylessLayer
from .slots import Branches, MemorySlot
from .window_cache import WindowLayer


class MemoryState:
    """The recurrent state [B, Hs, K, V] of one layer, and how to take tokens back.

    While ``record_past`` is set, the last tokens of a call wait outside the state until `crop` has said which of them
    stay: as raw projections, D wide where features are K wide, and without a second state. Every call reads what waits
    anew. What has stayed goes into the state with the next call, or with `settle`.
    """

    record_past = False

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    @classmethod
    def beside(cls, layer) -> MemoryState:
        """A layer of this class in the place of the stock ``layer``, with what that one holds already."""
        new = cls.__new__(cls)
        vars(new).update(vars(layer))
        new._begin()
        return new

    def _begin(self) -> None:
        self.record_past = False
        self.memory_config: MemoryConfig | None = None  # of the memory that reads
        self._empty()

    def _empty(self) -> None:
        self.state: torch.Tensor | None = None
        self.history: torch.Tensor | None = None  # raw tokens before, for a memory that looks at them
        self.seen: torch.Tensor | None = None  # how many there were, [B], for one that counts
        self.tokens_read = 0
        self.waiting: Tokens | None = None
        self.removable = 0
        """How many of the last tokens `crop` can remove."""
        self.next_removable: int | None = None
        """Of how many tokens of the next call; None: of all."""

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    def activate_past_recording(self) -> None:
        self.record_past = True

    # ---- reading ----

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """As the stock layer's; from here on the call's tokens count."""
        tokens = key_states.shape[-2]
        if not self.record_past:
            self.removable = 0
        elif self.next_removable is None or tokens <= self.next_removable:
            self.removable += tokens
        else:
            self.removable = self.next_removable
        self.next_removable = None
        self.tokens_read += tokens
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]

    def step(self, memory: LinearMemory, softmax: torch.Tensor, q: torch.Tensor, tokens: Tokens) -> torch.Tensor | None:
        """What `LinearMemory.step` gives, where one native call can take the token into the state; else None."""
        if self.removable or self.waiting is not None:
            return None
        if (one := memory.step(softmax, q, tokens, self.state)) is None:
            return None
        mixed, self.state = one
        return mixed

    def advance(self, memory: LinearMemory, q: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """What the memory reads for q [B, T, H, D], [B, T, H, V], once ``tokens`` are written."""
        if not self.removable and self.waiting is None:
            read, after = memory.advance(q, tokens, self._carried)
            self._carry(after)
            return read
        tokens, new = tokens if self.waiting is None else self.waiting.then(tokens), tokens.length
        q = torch.cat([q.new_zeros(len(q), tokens.length - new, *q.shape[2:]), q], 1)  # nobody asks again what was read
        settled, reads = tokens.length - self.removable, []
        if settled:
            read, after = memory.advance(q[:, :settled], tokens.cut(0, settled), self._carried)
            self._carry(after)
            reads.append(read)
        self.waiting = None
        if self.removable:
            waiting = tokens.cut(settled, tokens.length)
            reads.append(memory.advance(q[:, settled:], waiting, self._carried)[0])
            self.waiting = waiting.map(lambda x: x.detach().clone())  # or they would keep the whole call alive
        return torch.cat(reads, 1)[:, -new:]

    @torch.no_grad()
    def settle(self, memory: LinearMemory) -> None:
        """Take what waits into the state: from here on nothing can be taken back."""
        if self.waiting is not None:
            self._carry(memory.absorb(self.waiting, self._carried))
        self.waiting, self.removable = None, 0

    @property
    def _carried(self) -> LayerState:
        return LayerState(self.state, self.history, self.seen)

    def _carry(self, after: LayerState) -> None:
        self.state, self.history, self.seen = (None if x is None else x.detach() for x in after)

    # ---- moving ----

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens.

        Raises:
            ValueError: the number is positive.
            RuntimeError: nothing was recorded, or fewer tokens than are to be removed.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
        if tokens_to_remove < 0 and not self.record_past:
            raise RuntimeError("a recurrent state cannot be cropped: call cache.activate_past_recording() before")
        if -tokens_to_remove > self.removable:
            raise RuntimeError(f"only {self.removable} tokens were recorded, {-tokens_to_remove} cannot be removed")
        self.removable = 0
        super().crop(tokens_to_remove)  # type: ignore[misc]
        self.tokens_read += tokens_to_remove
        if self.waiting is not None:
            kept = self.waiting.length + tokens_to_remove
            self.waiting = self.waiting.cut(0, kept) if kept else None

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._empty()

    def _each(self, function) -> None:
        self._carry(LayerState(*(None if x is None else function(x) for x in self._carried)))
        if self.waiting is not None:
            self.waiting = self.waiting.map(function)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._each(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._each(lambda x: x[indices.to(x.device)])


class MemoryFull(MemoryState, DynamicLayer):
    """Growing keys and values, and the state."""


class MemorySliding(MemoryState, DynamicSlidingWindowLayer):
    """The base's own sliding window, and the state."""

    keys: Any
    values: Any

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """As the stock layer's, which keeps all of a recorded call: what cannot be taken back is cut off here."""
        seen = super().update(key_states, value_states, *args, **kwargs)
        kept = self.sliding_window - 1 + self.removable
        if self.record_past and self.keys.shape[-2] > kept:
            self.keys, self.values = self.keys[:, :, -kept:].clone(), self.values[:, :, -kept:].clone()
        return seen


class MemoryWindow(MemoryState, WindowLayer):
    """The window of ``max_self_attn_length`` with its sinks, and the state."""


class MemoryOnly(MemoryState, KeylessLayer):
    """No keys and values: the state alone, for a layer whose mu is fixed at 1."""


class MemoryIndexed(MemoryState, DynamicIndexedLayer):
    """Growing keys and values with those of an indexer (sparse attention), and the state."""


class MemoryHybrid(MemoryState, LinearAttentionAndFullAttentionLayer):
    """Growing keys and values, the states of the base's own linear attention in the same layer, and the memory's."""


class MemoryHybridSliding(MemoryState, LinearAttentionAndSlidingWindowAttentionLayer):
    """The same with the base's own sliding window."""


class MemoryStatic(MemoryState, StaticLayer):
    """Preallocated keys and values, and the state."""


class MemoryStaticSliding(MemoryState, StaticSlidingWindowLayer):
    """The base's own sliding window, preallocated, and the state."""


def memory_states(cache: Any) -> Iterator[MemoryState]:
    """The layers of ``cache`` that hold a memory's state; of None: none."""
    cache = getattr(cache, "self_attention_cache", cache)
    return (layer for layer in getattr(cache, "layers", ()) if isinstance(layer, MemoryState))


def check_lengths(cache: Any) -> None:
    """Refuse a ``cache`` whose layers hold different numbers of tokens: one that was cut in some of them, or of which a
    base has filled some.

    Raises:
        ValueError: it is one.
    """
    found: dict[int, int] = {}  # number of tokens -> a layer that holds so many
    for index, layer in enumerate(getattr(getattr(cache, "self_attention_cache", cache), "layers", ())):
        if isinstance(layer, MemoryState) and not isinstance(layer, StaticLayer):
            found.setdefault(layer.tokens_read, index)
        elif type(layer) in _BOUNDABLE and (held := layer.get_seq_length()):  # 0: it takes those of another layer
            found.setdefault(held, index)
    if len(found) > 1:
        held = ", ".join(f"{tokens} in layer {index}" for tokens, index in found.items())
        raise ValueError(
            f"the cache's layers hold different numbers of tokens: {held}. Was it cut by cache.crop without "
            "cache.activate_past_recording() before, or filled in part by another model? Start from an empty cache"
        )


# ---- a cache's layers become the memory's ---------------------------------------------------------------------------


def adopt_layer(cache: Cache, slot: MemorySlot, config: MemoryConfig) -> MemoryState | None:
    """The layer of ``cache`` that belongs to ``slot``, as one that holds a memory; a stock layer is replaced by its
    counterpart. None: ``cache`` is of fewer layers, as that of an assistant that exits early, which does not run this
    one.

    Args:
        cache: to take the layer from.
        slot: of the attention module.
        config: of its memory.

    Raises:
        ValueError: the layer holds tokens that no memory has read, or that another memory has read, or that were read
            under another window; keys were cut off by other means than ``cache.crop``; a static cache meets a window;
            or the layer's kind cannot carry a state.
    """
    lazy, index = lazy_layers(cache), slot.layer
    while lazy is not None and len(cache.layers) <= index:
        cache.layers.append(lazy())
    if index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    if isinstance(layer, MemoryState):
        _check(layer, slot, config)
        return layer
    held = int(layer.get_seq_length()) if layer.is_initialized else 0
    if held:
        raise ValueError(
            f"cache layer {index} already holds {held} tokens that this memory has not read: start from an empty "
            "cache, or from one that this model filled"
        )
    new = _counterpart(layer, slot, lazy is not None)
    new.record_past = getattr(layer, "record_past", False)
    new.memory_config = config
    cache.layers[index] = new
    return new


def _check(layer: MemoryState, slot: MemorySlot, config: MemoryConfig) -> None:
    """Refuse a ``layer`` that another model, or somebody's own hands, have made what it is."""
    index, window, alone = slot.layer, slot.window_now, slot.branches is Branches.MEMORY
    wanted = (window, slot.sinks if window else 0)
    kept = (layer.sliding_window, layer.sinks) if isinstance(layer, MemoryWindow) else (None, 0)
    if kept != wanted:
        named = "max_self_attn_length={} and sink_tokens={}"
        raise ValueError(
            f"cache layer {index} was made under {named.format(*kept)}, the model now has {named.format(*wanted)}: "
            "start from an empty cache"
        )
    if isinstance(layer, MemoryOnly) is not alone:
        has = "no keys and values (mu fixed at 1)" if not alone else "keys and values"
        raise ValueError(f"cache layer {index} holds {has}, unlike the model: start from an empty cache")
    if layer.memory_config is not config and layer.memory_config != config:
        raise ValueError(
            f"cache layer {index} was filled by a memory of another configuration ({layer.memory_config}), the model "
            f"has {config}: start from an empty cache"
        )
    if isinstance(layer, StaticLayer):
        return  # its length lies on the device
    held = layer.get_seq_length()  # type: ignore[attr-defined]
    if held != layer.tokens_read:
        raise ValueError(
            f"cache layer {index} holds the keys of {held} tokens, and its memory has read {layer.tokens_read}: tokens "
            "were added or cut off by other means than the model and cache.crop, which the state cannot follow. Start "
            "from an empty cache; to take tokens back call cache.activate_past_recording() before, and cache.crop(-n)"
        )


# a stock layer's kind and the same with a memory beside it
_COUNTERPARTS: dict[type, type[MemoryState]] = {
    DynamicLayer: MemoryFull,
    DynamicSlidingWindowLayer: MemorySliding,
    DynamicIndexedLayer: MemoryIndexed,
    LinearAttentionAndFullAttentionLayer: MemoryHybrid,
    LinearAttentionAndSlidingWindowAttentionLayer: MemoryHybridSliding,
    StaticLayer: MemoryStatic,
    StaticSlidingWindowLayer: MemoryStaticSliding,
}
_BOUNDABLE = (DynamicLayer, DynamicSlidingWindowLayer)


def unknown_cache_layers(config, layers: Iterable[int]) -> list[str]:
    """Kinds of cache layers that ``generate`` makes for the numbered ``layers`` of a model of ``config`` and that
    cannot
    carry a memory: classes of a version that is not known here."""
    made = DynamicCache(config=config).layers
    kinds = {type(made[n]) for n in layers if n < len(made)}
    return sorted(kind.__name__ for kind in kinds if kind not in _COUNTERPARTS)


def _counterpart(layer, slot: MemorySlot, kinds_unknown: bool) -> MemoryState:
    """What takes the place of the empty stock ``layer``. With ``kinds_unknown`` the cache was made without the model's
    configuration: its layers do not say which of the model's masks they go with, the slot does."""
    kind, window, alone = type(layer), slot.window_now, slot.branches is Branches.MEMORY
    if kind not in _COUNTERPARTS:
        raise ValueError(
            f"a cache layer of type {kind.__name__} cannot carry a memory; supported are "
            f"{', '.join(k.__name__ for k in _COUNTERPARTS)}"
        )
    if window is None and not alone:
        return _COUNTERPARTS[kind].beside(layer)
    if kind not in _BOUNDABLE:
        what = "a static cache" if issubclass(kind, StaticLayer) else f"a cache layer of type {kind.__name__}"
        needs = "bounded by max_self_attn_length" if window is not None else "without keys and values (mu fixed at 1)"
        raise ValueError(
            f"{what} cannot be {needs}: use the dynamic cache (the default), or set "
            f"{'max_self_attn_length=None' if window is not None else 'a mu below 1 (memory_only_layers, mag_weight)'}"
        )
    stock = layer if slot.shares_mask() else None
    is_sliding = slot.mask_kind == "sliding_attention" if kinds_unknown else layer.is_sliding
    if window is None:
        return MemoryOnly(is_sliding, stock)
    return MemoryWindow(window, slot.sinks, is_sliding, stock)
