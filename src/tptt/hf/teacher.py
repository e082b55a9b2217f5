"""A converted model as its own base, and what its attention layers give out: a teacher that needs no second model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from .forward import carriers
from .patch import memories
from .softmax import with_softmax, without_softmax


@contextmanager
def _without_memory(modules: Iterable[nn.Module], window: bool = False) -> Iterator[None]:
    """Within, the attention ``modules`` compute what the base's compute: no memory, and no window but where ``window`` keeps
    it. LoRA stays."""
    off = [m for m in modules if not m._tptt.off]
    alone = [m for m in off if m._tptt.alone]
    try:
        for module in alone:
            with_softmax(module)
        for module in off:
            module._tptt.off, module._tptt.whole = True, not window
        yield
    finally:
        for module in off:
            module._tptt.off = module._tptt.whole = False
        for module in alone:
            without_softmax(module)


@contextmanager
def as_base(model: nn.Module, window: bool = False) -> Iterator[nn.Module]:
    """Within, ``model`` computes what its base computes: no memory, no window, no LoRA. A cache that goes in
    is the base's own: none that the memory has read or will read. With ``window`` it computes what the base does that sees
    no further than the window, for calls without a cache.

    Raises:
        ValueError: the base's own weights train, so that it is no longer there.
    """
    peft = next((m for m in model.modules() if hasattr(m, "disable_adapter") and hasattr(m, "peft_config")), None)
    if peft is None and any(p.requires_grad for n, p in model.named_parameters() if ".liza." not in n):
        raise ValueError("the base's own weights train, so that it cannot be its own teacher: use lora_config")
    with _without_memory(carriers(model), window), nullcontext() if peft is None else peft.disable_adapter():
        yield model


@contextmanager
def softmax_as(model: nn.Module, whole: Collection[int] = (), none: Collection[int] = ()) -> Iterator[nn.Module]:
    """Within, the layers numbered in ``whole`` have the base's own attention (no window, no memory; LoRA stays) and those in
    ``none`` a softmax that gives zeros. For calls without a cache; layers without a memory are passed over."""
    modules = carriers(model)
    mute = [m for m in modules if m._tptt.layer in none and not m._tptt.alone]
    with _without_memory(m for m in modules if m._tptt.layer in whole):
        try:
            for module in mute:
                without_softmax(module)
            yield model
        finally:
            for module in mute:
                with_softmax(module)


@contextmanager
def _collected(model: nn.Module, name: str) -> Iterator[list[Any]]:
    """Collects what each layer with a memory appends to the list ``name`` of its site, in layer order."""
    modules = carriers(model)
    found: list[Any] = []
    for module in modules:
        setattr(module._tptt, name, [])
    try:
        yield found
    finally:
        for module in modules:
            found += getattr(module._tptt, name)
            setattr(module._tptt, name, None)


def attention_outputs(model: nn.Module) -> AbstractContextManager[list[torch.Tensor]]:
    """Collects what the attention of each layer with a memory gives out before its output projection, [B, T, H * V], in
    layer order.

    The list is filled when the block is left.
    """
    return _collected(model, "outputs")


def softmax_squares(model: nn.Module) -> AbstractContextManager[list[torch.Tensor]]:
    """Collects the mean squares [H * V] of the softmax branch of each layer with a memory over one call, in layer order.

    The list is filled when the block is left.
    """
    return _collected(model, "softmax_squared")


def memory_squares(model: nn.Module) -> AbstractContextManager[list[torch.Tensor]]:
    """`softmax_squares` of the memory branch, of a call without a cache."""
    return _collected(model, "memory_squared")


def projections(model: nn.Module) -> AbstractContextManager[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collects q [B, T, H, D] and k [B, T, Hk, D] of each layer with a memory as they leave their projections, in layer order.

    The list is filled when the block is left.
    """
    return _collected(model, "projected")


@contextmanager
def write_gates(model: nn.Module) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Collects of every learned write gate, call by call, the feature width of its memory and its logits [B, T, S]."""
    found: list[tuple[int, torch.Tensor]] = []

    learned = [
        (gate, m.key_features.width)
        for m in memories(model)
        if (gate := m.write_gate) is not None and any(p.requires_grad for p in gate.parameters())
    ]
    handles = [
        gate.register_forward_hook(lambda gate, args, out, width=width: found.append((width, out)))
        for gate, width in learned
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
