"""What a pass of a model on the meta device computes.

Legend: B rows, T tokens of a row, H heads, Hk key/value heads, D width of a head's queries and keys, V of its values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tptt.hf import Branches, find_attention, memories, memory_layers
from tptt.hf.softmax import window_of
from tptt.memory.update import Tokens

from .meta_model import Attention, FusedAttention, no_text, on_meta
from .torch_compat import operations_counted

Kind = tuple[torch.Size, torch.dtype, bool]
"""Shape and dtype of a tensor, and whether it needs a gradient."""


@dataclass(frozen=True)
class MemoryCall:
    """How the memory of one layer was called: with ``q`` [B, T, H, D], and hidden states [B, T, hidden], k [B, T, Hk,
    D] and v [B, T, Hk, V]."""

    q: Kind
    hidden: Kind
    k: Kind
    v: Kind

    @classmethod
    def of(cls, q: torch.Tensor, tokens: Tokens) -> MemoryCall:
        """Of such arguments."""
        return cls(*((x.shape, x.dtype, x.requires_grad) for x in (q, tokens.hidden, tokens.k, tokens.v)))

    def arguments(self, train: bool) -> tuple[torch.Tensor, Tokens]:
        """Empty tensors of these kinds, with gradients where ``train`` allows them."""
        kinds = (self.q, self.hidden, self.k, self.v)
        q, hidden, k, v = (torch.empty(shape, dtype=d, requires_grad=g and train) for shape, d, g in kinds)
        return q, Tokens(hidden, k, v, None)


@dataclass
class Counted:
    """What one pass computes.

    Args:
        operations: floating-point operations by dtype; the memories themselves are not among them.
        masked: as `Attention`'s.
        calls: of each memory.
    """

    operations: Counter[torch.dtype]
    masked: int
    calls: dict[nn.Module, MemoryCall]


@contextmanager
def _stubs(model: nn.Module) -> Iterator[dict[nn.Module, MemoryCall]]:
    """Within, the memories of ``model`` compute nothing and note how they are called: a memory takes many small steps,
    and those of most layers are the same."""
    calls: dict[nn.Module, MemoryCall] = {}
    found = memories(model)

    def stub(memory: nn.Module):
        def forward(q: torch.Tensor, tokens: Tokens) -> torch.Tensor:
            calls[memory] = MemoryCall.of(q, tokens)
            reads = sum(x.float().sum() for x in (q, tokens.hidden, tokens.k, tokens.v))  # gradients flow as they will
            return q.new_zeros(*q.shape[:-1], tokens.v.shape[-1], dtype=torch.float32) + reads

        return forward

    for memory in found:
        memory.forward = stub(memory)  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        for memory in found:
            del memory.forward


def count_pass(model: nn.Module, rows: int, length: int, train: bool = True, recompute: bool = False) -> Counted:
    """What a pass of ``rows`` x ``length`` tokens computes, its memories' insides aside.

    Args:
        model: on the meta device.
        rows, length: of the batch.
        train: with the backward pass to all that trains; else forward alone.
        recompute: the backward pass recomputes the activations of each layer.
    """
    attention = Attention()

    @contextmanager
    def again() -> Iterator[None]:  # torch leaves the modes of function calls when it enters a backward pass
        with torch.device("meta"), FusedAttention(attention):
            yield

    checkpointing = _recomputing(model, again) if recompute else nullcontext()
    windows = _windows_told(model, length, attention)
    with checkpointing, windows, _stubs(model) as calls, on_meta(attention), operations_counted() as operations:
        with torch.set_grad_enabled(train):
            logits = model(**no_text(rows, length)).logits
        if train:
            torch.autograd.backward(logits.float().sum())
    model.zero_grad(set_to_none=True)
    return Counted(operations + attention.operations, attention.masked, dict(calls))


@contextmanager
def _recomputing(model: Any, again: Any) -> Iterator[None]:
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": lambda: (nullcontext(), again())}
    )
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def count_memory(
    memory: nn.Module, call: MemoryCall, train: bool = True, recompute: bool = False
) -> Counter[torch.dtype]:
    """The operations inside one ``memory`` for such a ``call``, in PyTorch's chunked form that GPUs compute."""
    with on_meta(), operations_counted() as operations:
        arguments = call.arguments(train)
        with torch.set_grad_enabled(train):
            read = memory(*arguments)
        forward = Counter(operations)
        if train:
            torch.autograd.backward(read.sum())
    memory.zero_grad(set_to_none=True)
    return operations + forward if train and recompute else operations


@contextmanager
def _windows_told(model: Any, length: int, attention: Attention) -> Iterator[None]:
    """Within, each layer of ``model`` tells ``attention`` whether it sees a part of a row of ``length`` tokens."""

    def tell(windowed: bool, module: nn.Module, args: Any) -> None:
        attention.windowed = windowed

    body = model.inner.base_model
    windows = {x.attention: x.window for x in memory_layers(model) if x.branches is not Branches.BASE}
    handles = []
    for found in find_attention(body):
        # the base's own sliding window, which makes a mask as soon as it is full
        own = window_of(found.module, getattr(found.module, "config", None) or body.config, found.layer, length + 1)
        window = windows.get(found.module)
        windowed = (own is not None and own <= length) or (window is not None and window < length)
        handles.append(found.module.register_forward_pre_hook(partial(tell, windowed)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
