"""A converted model without weights, on torch's meta device: what a call of it computes and keeps.

Legend: B rows, T tokens of a row, S keys, H heads, D width of a head's queries and keys, V of its values, K feature
width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tptt.hf import is_memory_parameter

from .torch_compat import expert_products, fake_tensors, storage_id


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


class _Kernel(torch.autograd.Function):
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


class FusedAttention(TorchFunctionMode):
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
        return _Kernel.apply(q, k, v, self.found, operations)


@contextmanager
def on_meta(found: Attention | None = None) -> Iterator[None]:
    """Within, a model on the meta device can be called, and what it computes holds for a GPU.

    Raises:
        UnsupportedTorchError: torch lacks a name that this needs.
    """
    with fake_tensors(), torch.device("meta"), FusedAttention(found or Attention()):
        yield


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Let ``model`` compute in ``dtype``, LoRA too, as autocast has it. The memories stay in float32."""
    for name, p in model.named_parameters():
        if not is_memory_parameter(name):
            p.data = p.data.to(dtype)


def no_text(rows: int, length: int) -> dict[str, Any]:
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
    with fake, torch.device("meta"), FusedAttention(Attention()), hooks:
        torch.func.functional_call(model, parameters, (), no_text(rows, length))
    return sum(size for number, size in kept.items() if number not in own)
