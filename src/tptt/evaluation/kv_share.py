"""What the layers of a model hold of keys and values, as shares of what its base holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import nn

from tptt.hf import memory_layers
from tptt.hf.cache_formula import CacheFormula


@dataclass(frozen=True)
class LayerKV:
    """Bytes per sequence that one attention layer holds after ``length`` tokens, while tokens come one by one.

    Args:
        layer: its number.
        whole: keys and values with the base's own attention.
        window: with the window of its memory, sinks included; None: it has no memory, or one without a window.
        state: what its memory holds beside that, whatever the length; 0: it has none.
    """

    layer: int
    whole: int
    window: int | None
    state: int


def layer_kv(model: nn.Module, length: int) -> list[LayerKV]:
    """The bytes of every attention layer of ``model`` after ``length`` tokens, with a memory or without, by
    `CacheFormula`.

    Raises:
        ValueError: ``length`` is below 1, or the size of a layer's cache is not known.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length must be an integer of 1 or more, got {length!r}")
    windowed = {x.layer for x in memory_layers(model) if x.window is not None}
    base, own = (CacheFormula.of(model, base=x).after(length).layers for x in (True, False))
    return [
        LayerKV(whole.layer, whole.kv_bytes, here.kv_bytes if here.layer in windowed else None, here.memory_bytes)
        for whole, here in zip(base, own, strict=True)
        if whole.kv_bytes  # linear attention holds none
    ]


def held_kv(kinds: Iterable[LayerKV], whole: Collection[int], none: Collection[int] = ()) -> int:
    """Bytes of keys and values in all where the layers numbered in ``whole`` keep their whole context, those in
    ``none`` hold nothing, and the others their window, if they have one."""
    return sum(0 if x.layer in none else x.whole if x.layer in whole or x.window is None else x.window for x in kinds)
