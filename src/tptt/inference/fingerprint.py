"""A hash of what a model computes, by which a snapshot knows the model that it was taken from."""

from __future__ import annotations

import json
import pickle
from typing import Any

import torch
import xxhash
from torch import nn

from tptt.hf import memory_layers
from tptt.hf.compat import adapter_states, offloaded_value, uncompiled, uncompiled_name

_AT_ONCE = 1 << 26
"""Bytes that are brought to the CPU at once."""


def fingerprint(model: nn.Module) -> str:
    """A hash of all bytes of the weights and persistent buffers of ``model``, with their names, shapes and dtypes, of
    what its memories are, of its rotary settings and of which adapters are at work.

    The hash is XXH3 with 128 bits: it is made to notice a change, not to resist somebody who wants to hide one. Nothing
    is kept from one call to the next, because torch does not count every change of a tensor: those through ``.data``
    escape it, and peft merges adapters in that way.
    """
    model = uncompiled(model)
    digest = xxhash.xxh3_128(json.dumps(_settings(model), sort_keys=True, default=repr).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(uncompiled_name(name).encode())
        if isinstance(value, torch.Tensor):
            _update(digest, offloaded_value(model, name) if value.is_meta else value.detach())
        else:  # what a module's get_extra_state gives
            digest.update(pickle.dumps(value))
    return digest.hexdigest()


def _settings(model: nn.Module) -> dict[str, Any]:
    """What decides what ``model`` computes and is not among its weights."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    layers = [
        (x.layer, x.window, x.sinks, x.mu_fixed, x.branches.name, repr(getattr(x.memory, "config", None)))
        for x in memory_layers(model)
    ]
    return {"memory": layers, "rotary": getattr(text, "rope_parameters", None), "adapters": adapter_states(model)}


def _update(digest: Any, tensor: torch.Tensor) -> None:
    """Add the type, the shape and all bytes of ``tensor``; of one that is made of others (a quantised weight) those."""
    digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        digest.update(repr(context).encode())
        for name in names:
            _update(digest, getattr(tensor, name))
        return
    if tensor.is_quantized:
        digest.update(repr(tensor.qscheme()).encode())
        for part in _quantisation(tensor):
            _update(digest, part)
        return
    flat = tensor.reshape(-1).view(torch.uint8)
    for part in flat.split(_AT_ONCE):
        digest.update(memoryview(part.cpu().numpy()))


def _quantisation(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Integers, scales and zero points of one of torch's own quantised tensors."""
    if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    return [tensor.int_repr(), torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)]
