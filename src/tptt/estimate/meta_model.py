"""A converted model without weights, on torch's meta device: what can be known from the base's configuration alone."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tptt.evaluation import LayerKV, layer_kv


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps for its backward pass: q, k, v and its output; on the meta device torch would
    count the matrix of all weights, which no kernel keeps. [B, H, T, D]."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


class _Fused(TorchFunctionMode):
    """Fused attention as it is kept on a GPU; and products of experts in any dtype, where the meta device has bfloat16 only."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        if function is torch._grouped_mm:  # [S, K] and [E, K, N] -> [S, N]: one expert takes what any takes
            return args[0] @ args[1][0]
        return function(*args, **(kwargs or {}))


def saved_for_backward(model: nn.Module, rows: int, length: int) -> int:
    """Bytes of all tensors that a forward pass of ``rows`` x ``length`` tokens keeps for the backward pass, parameters
    aside. Nothing is computed: ``model`` lies on the meta device."""
    # fake tensors on top of meta ones: a model asks them for no values, such as whether rows are packed
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    parameters = {n: fake.from_tensor(p) for n, p in model.named_parameters()}
    own = {p.untyped_storage()._cdata for p in parameters.values()}
    kept: dict[int, int] = {}
    alive = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        alive.append(x)  # an address is that of one storage only while it lives
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with fake, torch.device("meta"), _Fused(), hooks:
        inputs = {"input_ids": torch.zeros(rows, length, dtype=torch.long), "use_cache": False}
        torch.func.functional_call(model, parameters, (), inputs)
    return sum(size for address, size in kept.items() if address not in own)


def skeleton_kv(model: nn.Module, tokens: int) -> list[LayerKV]:
    """`layer_kv` of a model on the meta device."""
    with _Fused():
        return layer_kv(model, tokens)
