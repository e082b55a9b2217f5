"""The softmax branch beside a memory: its window, its masks, or that it is left out.

Legend: B batch, H heads, T new tokens, n keys.
"""

from __future__ import annotations

import copy
import inspect

import torch
from torch import nn
from transformers import AttentionInterface

from .active import memory_of
from .window_cache import WindowLayer, window_mask

_NO_SOFTMAX = "tptt_memory_only"


def _nothing(module, query, key, value, attention_mask, *args, **kwargs):
    """An attention function that leaves everything to the memory: zeros [B, T, H, V]."""
    batch, heads, tokens, _ = query.shape
    return query.new_zeros(batch, tokens, heads, value.shape[-1]), None


AttentionInterface.register(_NO_SOFTMAX, _nothing)


def without_softmax(module: nn.Module) -> None:
    """Let ``module`` compute no softmax: a configuration of its own names an attention function that does nothing."""
    module._tptt_config = module.config
    module.config = copy.copy(module.config)
    module.config._attn_implementation_internal = _NO_SOFTMAX
    module._tptt.alone = True


def with_softmax(module: nn.Module) -> None:
    """Undo `without_softmax`."""
    if (config := module.__dict__.pop("_tptt_config", None)) is not None:
        module.config = config
        module._tptt.alone = False


def follow_weight(module: nn.Module) -> None:
    """Leave the softmax of ``module`` out while mu can only be 1, and take it in again when it no longer is.

    It stays where an adapter has a memory of its own: adapters are switched without a word, and mu may differ.
    """
    site, memory = module._tptt, memory_of(module)
    weight = memory.mag_weight
    if not site.follows or weight.is_meta:
        return
    wanted = float(weight) == 1.0 and memory is module.liza
    if wanted is not site.alone:
        (without_softmax if wanted else with_softmax)(module)


def window_refusal(module: nn.Module, config, sinks: int) -> str | None:
    """Why the softmax of ``module`` in a model of ``config`` cannot be bounded, or None."""
    if config is None:
        return "it has no config that names its attention implementation"
    if getattr(config, "alibi", False):
        return "its ALiBi biases lie in the mask"
    if "position_bias" in inspect.signature(type(module).forward).parameters:  # MPT
        return "its ALiBi biases are those of the last keys"
    if sinks and getattr(getattr(module, "bias", None), "ndim", 0) == 4:
        return "it counts distances among the keys it is given, sinks included: set sink_tokens=0"
    return None


def window_of(module: nn.Module, config, layer: int, window: int | None) -> int | None:
    """The softmax branch's window: ``window``, or the base's own sliding one where that is shorter."""
    if window is None:
        return None
    own, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if hasattr(module, "sliding_window"):
        own = module.sliding_window
    elif kinds and kinds[layer] != "sliding_attention":
        own = None
    return min(window, own) if own else window


def real_tokens(mask: torch.Tensor, tokens: int, layer, says_hidden: bool) -> torch.Tensor | None:
    """Which of the new tokens are real, [B, T] bool, where only a prepared mask arrives: the diagonal of a 4-D (3-D) one.

    A bool mask says who is seen, or, with ``says_hidden``, who is not.
    """
    if mask.ndim == 2:
        return mask[:, -tokens:].bool()
    if tokens == 1:
        return None
    if mask.ndim == 3:
        mask = mask[:, None]
    past = 0 if layer is None else layer.get_seq_length()
    rows = torch.arange(tokens, device=mask.device)
    columns = rows + (past if mask.shape[-1] >= int(past) + tokens else mask.shape[-1] - tokens)
    diagonal = mask[:, 0, rows.clamp(max=mask.shape[-2] - 1), columns]  # one row, if it says what is padding only
    if diagonal.dtype != torch.bool:
        return diagonal >= 0
    return ~diagonal if says_hidden else diagonal


def windowed(module: nn.Module, hidden: torch.Tensor, kwargs: dict, mask, segments, layer) -> None:
    """Put the window into ``kwargs``, the arguments of the attention module: the mask in the form its implementation takes,
    and ALiBi biases of the keys that are left."""
    site = module._tptt
    kind = site.config._attn_implementation or "eager"
    if kind not in ("eager", "sdpa"):
        raise ValueError(f"max_self_attn_length needs attn_implementation 'sdpa' or 'eager', not {kind!r}")
    batch, tokens = hidden.shape[:2]
    if mask is not None:
        mask = mask.expand(batch, -1)
    if isinstance(layer, WindowLayer):
        has_alibi = kwargs.get("alibi") is not None
        band = layer.expect(mask, batch, tokens, hidden.device, ordered=has_alibi)
        if has_alibi:
            kwargs["alibi"] = _of_keys(kwargs["alibi"], layer.slots)
    elif tokens <= site.window and segments is None:
        return
    else:
        valid = hidden.new_ones(batch, tokens, dtype=torch.bool) if mask is None else mask
        band = window_mask(valid, site.window, site.sinks, segments)
    if band is not None and kind == "eager":
        band = torch.zeros(band.shape, dtype=hidden.dtype, device=band.device).masked_fill(
            ~band, torch.finfo(hidden.dtype).min
        )
    kwargs["attention_mask"] = band


def _of_keys(alibi: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The columns ``slots`` [B, n] of ALiBi biases [B * H, 1, tokens so far]."""
    rows = alibi.shape[0] // slots.shape[0]
    return alibi.gather(-1, slots.clamp_min(0).repeat_interleave(rows, 0)[:, None].expand(-1, alibi.shape[1], -1))
