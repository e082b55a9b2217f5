"""A converted model without weights, on torch's meta device: what a call of it computes and keeps.

Legend: B rows, T tokens of a row, S keys, H heads, D width of a head's queries and keys, V of its values, K feature
width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tptt.hf import Branches, find_attention, is_memory_parameter, memories, memory_layers
from tptt.hf.softmax import window_of

from .torch_compat import expert_products, fake_tensors, operations_counted, storage_id


@dataclass
class Attention:
    """What the calls of fused attention within `on_meta` computed and kept.

    Args:
        windowed: whether the layer at work sees a part of its row: then its kernel gets a mask, which it keeps as a
            bias, and computes every product; else it computes the half that is in the past. Torch and transformers tell
            a model on the meta device that it has to make a mask in any case.
        operations: of the two products, by dtype.
        masked: numbers in the masks, in all.
    """

    windowed: bool = True
    operations: Counter[torch.dtype] = field(default_factory=Counter)
    masked: int = 0


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps for its backward pass: q, k, v and its output, [B, H, T, D]. On the meta
    device torch would count the matrix of all weights, which no kernel keeps."""

    @staticmethod
    def forward(ctx, q, k, v, found: Attention, operations: int):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        ctx.found, ctx.operations = found, operations
        found.operations[q.dtype] += operations
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _ = ctx.saved_tensors
        # the weights again, and the gradients of q, k, v and of the weights: five products where forward has two
        ctx.found.operations[q.dtype] += ctx.operations * 5 // 2
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None


class _Fused(TorchFunctionMode):
    """Fused attention as GPUs compute it, and products of experts in any dtype."""

    def __init__(self, found: Attention) -> None:
        super().__init__()
        self.found, self.experts = found, expert_products()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function in self.experts:  # every token takes one expert's product, whichever
            return args[0] @ args[1][0]
        return function(*args, **kwargs)

    def _attention(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        operations = 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        if attn_mask is not None and (self.found.windowed or attn_mask.is_floating_point()):
            self.found.masked += attn_mask.numel()
        elif attn_mask is not None or is_causal:
            operations //= 2
        return _FusedAttention.apply(q, k, v, self.found, operations)


@contextmanager
def on_meta(found: Attention | None = None) -> Iterator[None]:
    """Within, a model on the meta device can be called, and what it computes holds for a GPU.

    Raises:
        UnsupportedTorchError: torch lacks a name that this needs.
    """
    with fake_tensors(), torch.device("meta"), _Fused(found or Attention()):
        yield


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Let ``model`` compute in ``dtype``, LoRA too, as autocast has it. The memories stay in float32."""
    for name, p in model.named_parameters():
        if not is_memory_parameter(name):
            p.data = p.data.to(dtype)


def _ids(rows: int, length: int) -> dict[str, Any]:
    return {"input_ids": torch.zeros(rows, length, dtype=torch.long), "use_cache": False}


def saved_for_backward(model: nn.Module, rows: int, length: int) -> int:
    """Bytes of all tensors that a forward pass of ``rows`` x ``length`` tokens keeps for the backward pass, parameters
    and masks aside. Nothing is computed: ``model`` lies on the meta device."""
    fake = fake_tensors()
    parameters = {n: fake.from_tensor(p) for n, p in model.named_parameters()}  # type: ignore[attr-defined]
    own = {storage_id(p) for p in parameters.values()}
    kept: dict[int, int] = {}
    alive = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        alive.append(x)  # the number is that of one storage only while it lives
        kept[storage_id(x)] = x.untyped_storage().nbytes()
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with fake, torch.device("meta"), _Fused(Attention()), hooks:
        torch.func.functional_call(model, parameters, (), _ids(rows, length))
    return sum(size for number, size in kept.items() if number not in own)


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


# ---- operations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryCall:
    """How the memory of one layer was called: (shape, dtype, whether it needs a gradient) of hidden states [B, T,
    hidden], q [B, T, H, D], k [B, T, Hk, D] and v [B, T, Hk, V]."""

    tensors: tuple[tuple[torch.Size, torch.dtype, bool], ...]


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
        def forward(*tensors):
            tensors = tensors[:4]  # without the mask
            calls[memory] = MemoryCall(tuple((x.shape, x.dtype, x.requires_grad) for x in tensors))
            q, v = tensors[1], tensors[3]
            reads = sum(x.float().sum() for x in tensors)  # gradients flow as they will
            return v.new_zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float32) + reads

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
        with torch.device("meta"), _Fused(attention):
            yield

    checkpointing = _recomputing(model, again) if recompute else nullcontext()
    windows = _windows_told(model, length, attention)
    with checkpointing, windows, _stubs(model) as calls, on_meta(attention), operations_counted() as operations:
        with torch.set_grad_enabled(train):
            logits = model(**_ids(rows, length)).logits
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
        tensors = [torch.empty(shape, dtype=d, requires_grad=g and train) for shape, d, g in call.tensors]
        with torch.set_grad_enabled(train):
            read = memory(*tensors, None)
        forward = Counter(operations)
        if train:
            torch.autograd.backward(read.sum())
    memory.zero_grad(set_to_none=True)
    return operations + forward if train and recompute else operations
