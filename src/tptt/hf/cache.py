"""Cache layers that hold the recurrent state beside the keys and values.

Each class is a stock transformers layer with `MemoryState` on top, so that beam reordering, batch selection, reset and
roll-back move both. Offloading moves keys and values that grow; the state, which does not, stays on its device, as
transformers keeps the states of linear attention there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from transformers import Cache, DynamicCache

from tptt.memory.update import MemoryUpdate

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
from .window_cache import WindowLayer


class MemoryState:
    """The recurrent state [B, H, K, V] of one layer, and how to roll it back.

    While ``record_past`` is set, what is written is kept from the first call after a crop on, so that `crop` can
    recompute the state without the removed tokens.
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
        self.state: torch.Tensor | None = None
        self.history: torch.Tensor | None = None  # raw tokens before, for a memory that looks at them
        self.seen: torch.Tensor | None = None  # how many there were, [B], for one that counts
        self._before: tuple = (None, None, None)  # the three, before what is recorded
        self._history: list[MemoryUpdate] = []

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    def activate_past_recording(self) -> None:
        self.record_past = True

    def write(self, state: torch.Tensor, update: MemoryUpdate) -> None:
        """Take the ``state`` after ``update``, and what the next call sees of their raw tokens."""
        if self.record_past:
            if not self._history:
                self._before = (self.state, self.history, self.seen)
            self._history.append(update.map(torch.Tensor.detach))
        self.state, self.history = state.detach(), None if update.history is None else update.history.detach()
        self.seen = update.seen_after

    def _each(self, function) -> None:
        for name in ("state", "history", "seen"):
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))
        self._before = tuple(None if x is None else function(x) for x in self._before)
        self._history = [w.map(function) for w in self._history]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens.

        Raises:
            ValueError: the number is positive.
            RuntimeError: nothing was recorded, or fewer tokens than are to be removed.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
        recorded = sum(w.k.shape[1] for w in self._history)
        if tokens_to_remove < 0:
            if not self.record_past:
                raise RuntimeError("a recurrent state cannot be cropped: call cache.activate_past_recording() before")
            if recorded < -tokens_to_remove:
                raise RuntimeError(f"only {recorded} tokens were recorded, {-tokens_to_remove} cannot be removed")
        super().crop(tokens_to_remove)  # type: ignore[misc]
        if tokens_to_remove < 0:
            kept = recorded + tokens_to_remove
            self.state, self.history, self.seen = self._before
            if kept:
                update = MemoryUpdate.joined(self._history, kept, self.history)
                self.state, self.history, self.seen = update.apply(self.state), update.history, update.seen_after
        self._history, self._before = [], (None, None, None)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.state, self.history, self.seen, self._before, self._history = None, None, None, (None, None, None), []

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


def adopt_layer(
    cache: Cache, index: int, window: int | None, sinks: int, alone: bool, shares_mask: Callable[[], bool]
) -> MemoryState | None:
    """Layer ``index`` of ``cache`` as one that holds a memory; a stock layer is replaced by its counterpart. None: ``cache``
    is of fewer layers, as that of an assistant that exits early, which does not run this one.

    Args:
        cache: to take the layer from.
        index: of the layer.
        window, sinks: of the softmax branch.
        alone: there is no softmax branch.
        shares_mask: whether another layer takes the mask whose size the cache says by this one; asked once.

    Raises:
        ValueError: the layer holds tokens that no memory has read, or that were read under another window; or a static
            cache meets a window; or the layer's kind cannot carry a state.
    """
    lazy = lazy_layers(cache)
    while lazy is not None and len(cache.layers) <= index:
        cache.layers.append(lazy())
    if index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    if isinstance(layer, MemoryState):
        _check_window(layer, index, window, sinks, alone)
        return layer
    if layer.is_initialized and int(layer.get_seq_length()) > 0:
        raise ValueError(
            f"cache layer {index} already holds {int(layer.get_seq_length())} tokens that this memory has not read: "
            "start from an empty cache, or from one that this model filled"
        )
    new = _counterpart(layer, window, sinks, alone, shares_mask())
    new.record_past = getattr(layer, "record_past", False)
    cache.layers[index] = new
    return new


def _check_window(layer: MemoryState, index: int, window: int | None, sinks: int, alone: bool) -> None:
    kept = (layer.sliding_window, layer.sinks) if isinstance(layer, MemoryWindow) else (None, 0)
    if kept != (window, sinks):
        named = "max_self_attn_length={} and sink_tokens={}"
        raise ValueError(
            f"cache layer {index} was made under {named.format(*kept)}, the model now has {named.format(window, sinks)}: "
            "start from an empty cache"
        )
    if isinstance(layer, MemoryOnly) is not alone:
        has = "no keys and values (mu fixed at 1)" if not alone else "keys and values"
        raise ValueError(f"cache layer {index} holds {has}, unlike the model: start from an empty cache")


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
    """Kinds of cache layers that ``generate`` makes for the numbered ``layers`` of a model of ``config`` and that cannot
    carry a memory: classes of a version that is not known here."""
    made = DynamicCache(config=config).layers
    kinds = {type(made[n]) for n in layers if n < len(made)}
    return sorted(kind.__name__ for kind in kinds if kind not in _COUNTERPARTS)


def _counterpart(layer, window: int | None, sinks: int, alone: bool, shares_mask: bool) -> MemoryState:
    kind = type(layer)
    if kind not in _COUNTERPARTS:
        raise ValueError(
            f"a cache layer of type {kind.__name__} cannot carry a memory; supported are {', '.join(k.__name__ for k in _COUNTERPARTS)}"
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
    stock = layer if shares_mask else None
    if window is None:
        return MemoryOnly(layer.is_sliding, stock)
    return MemoryWindow(window, sinks, layer.is_sliding, stock)
