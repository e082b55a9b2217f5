"""A converted model as its own base, and what its attention layers give out: a teacher that needs no second model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from .patch import attention_body, decoder_layer
from .slots import Branches, is_memory_parameter, memories, patched_attention, slot_of
from .softmax import set_branches

_WITHOUT_MEMORY = (Branches.BASE, Branches.SOFTMAX)


@contextmanager
def _computing(modules: Iterable[nn.Module], branches: Branches) -> Iterator[None]:
    """Within, the attention ``modules`` compute ``branches``. LoRA stays."""
    before = [(module, set_branches(module, branches)) for module in modules]
    try:
        yield
    finally:
        for module, was in before:
            set_branches(module, was)


@contextmanager
def as_base(model: nn.Module, window: bool = False) -> Iterator[nn.Module]:
    """Within, ``model`` computes what its base computes: no memory, no window, no LoRA. A cache that goes in
    is the base's own: none that the memory has read or will read. With ``window`` it computes what the base does that
    sees no further than the window, for calls without a cache.

    Raises:
        ValueError: the base's own weights train, so that it is no longer there.
    """
    peft = next((m for m in model.modules() if hasattr(m, "disable_adapter") and hasattr(m, "peft_config")), None)
    if peft is None and any(p.requires_grad for n, p in model.named_parameters() if not is_memory_parameter(n)):
        raise ValueError("the base's own weights train, so that it cannot be its own teacher: use lora_config")
    carrying = [m for m in patched_attention(model) if slot_of(m).branches not in _WITHOUT_MEMORY]
    computing = _computing(carrying, Branches.SOFTMAX if window else Branches.BASE)
    with computing, nullcontext() if peft is None else peft.disable_adapter():
        yield model


@contextmanager
def softmax_as(model: nn.Module, whole: Collection[int] = (), none: Collection[int] = ()) -> Iterator[nn.Module]:
    """Within, the layers numbered in ``whole`` have the base's own attention (no window, no memory; LoRA stays) and
    those in ``none`` a softmax that gives zeros. For calls without a cache; layers without a memory are passed over."""
    modules = patched_attention(model)
    restored = [m for m in modules if slot_of(m).layer in whole and slot_of(m).branches not in _WITHOUT_MEMORY]
    silent = [m for m in modules if slot_of(m).layer in none]
    with _computing(restored, Branches.BASE), _computing(silent, Branches.MEMORY):
        yield model


def both_branches(model: nn.Module) -> AbstractContextManager[None]:
    """Within, every layer of ``model`` with a memory computes its softmax as well, also where mu is fixed at 1."""
    return _computing([m for m in patched_attention(model) if slot_of(m).branches is Branches.MEMORY], Branches.BOTH)


@contextmanager
def _collected(model: nn.Module, name: str) -> Iterator[list[Any]]:
    """Collects what each layer with a memory records as ``name``, in layer order."""
    slots = [slot_of(m) for m in patched_attention(model)]
    found: list[Any] = []
    for slot in slots:
        slot.records[name] = []
    try:
        yield found
    finally:
        for slot in slots:
            found += slot.records.pop(name)


@contextmanager
def window_changes(model: nn.Module) -> Iterator[dict[int, float]]:
    """Within, `as_base`; and each call of ``model`` also computes every layer that carries a window a second time, from
    the same hidden states, with its window. Yields {layer number: sum over tokens of |change|^2 / |output|^2} of the
    layers' outputs [B, T, hidden], to which each call adds.

    For calls without a cache. Costs a second forward pass of the layers, however many they are.
    """
    found: dict[int, float] = {}
    body = attention_body(model)
    windowed = {m for m in patched_attention(model) if slot_of(m).window is not None}
    with as_base(model):
        handles = [
            decoder_layer(body, name).register_forward_hook(
                partial(_add_window_change, found, module), with_kwargs=True
            )
            for name, module in body.named_modules()
            if module in windowed
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def _add_window_change(found: dict[int, float], attention: nn.Module, layer: nn.Module, args, kwargs, output) -> None:
    with _computing([attention], Branches.SOFTMAX):
        changed = layer.forward(*args, **kwargs)  # not the module itself: this hook would be called again
    changed, output = (x[0] if isinstance(x, tuple | list) else x for x in (changed, output))
    change = (changed.float() - output.float()).pow(2).sum(-1) / output.float().pow(2).sum(-1).clamp_min(1e-12)
    number = slot_of(attention).layer
    tokens = output.shape[0] * output.shape[1]  # some families have several streams of each
    found[number] = found.get(number, 0.0) + float(change.mean()) * tokens


def attention_outputs(model: nn.Module) -> AbstractContextManager[list[torch.Tensor]]:
    """Collects what the attention of each layer with a memory gives out before its output projection, [B, T, H * V], in
    layer order.

    The list is filled when the block is left.
    """
    return _collected(model, "attention_outputs")


def softmax_squares(model: nn.Module) -> AbstractContextManager[list[torch.Tensor]]:
    """Collects the mean squares [H * V] of the softmax branch of each layer with a memory over one call, in layer
    order.

    The list is filled when the block is left.
    """
    return _collected(model, "softmax_squares")


def memory_squares(model: nn.Module) -> AbstractContextManager[list[torch.Tensor]]:
    """`softmax_squares` of the memory branch, of a call without a cache."""
    return _collected(model, "memory_squares")


def projections(model: nn.Module) -> AbstractContextManager[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collects q [B, T, H, D] and k [B, T, Hk, D] of each layer with a memory as they leave their projections, in layer
    order.

    The list is filled when the block is left.
    """
    return _collected(model, "projections")


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
