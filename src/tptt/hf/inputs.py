"""What a call says about its tokens (padding, packing), passed down to where the memories are."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from tptt.config import MemoryConfig

from .packing import packed_positions, segment_ids


def named(names: tuple[str, ...], args: tuple, kwargs: dict) -> dict:
    """Positional arguments under their names too."""
    return dict(zip(names, args, strict=False)) | kwargs


def takes_keywords(module: nn.Module) -> bool:
    """Whether ``module`` can be called with any keyword."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(type(module).forward).parameters.values())


def before_body(names: tuple[str, ...], config: MemoryConfig, sites: list, told: bool, body: nn.Module, args, kwargs):
    """Pass the 2-D mask and the packing down as keywords: attention modules get a 4-D mask at best."""
    kwargs = named(names, args, kwargs)
    ids = kwargs.get("input_ids")
    ids = kwargs.get("inputs_embeds") if ids is None else ids
    if ids is None:
        return (), kwargs
    mask, tokens = kwargs.get("attention_mask"), ids.shape[1]
    if config.max_self_attn_length is not None and isinstance(mask, torch.Tensor) and mask.ndim > 2:
        raise ValueError(f"with max_self_attn_length the attention mask must be 2-D, [B, T]; got {tuple(mask.shape)}")
    segments = _segments(kwargs, ids, mask, body)
    for site in sites:
        site.running.packed = segments is not None
    if not told:
        return (), kwargs
    if segments is not None:
        kwargs["memory_segments"] = segments
        return (), kwargs
    real = kwargs.pop("memory_mask", None)
    if real is None and isinstance(mask, torch.Tensor) and mask.ndim == 2:
        real = mask[:, -tokens:].bool()
    if real is not None or mask is None:  # else a prepared mask says it
        # nothing is padded in most calls, and masks have their price at every layer
        kwargs["memory_mask"] = None if real is None or _all(real) else real
    return (), kwargs


def _all(real: torch.Tensor) -> bool:
    return not torch.compiler.is_compiling() and bool(real.all())


def _segments(kwargs: dict, ids: torch.Tensor, mask, body: nn.Module) -> torch.Tensor | None:
    """[B, T] number of each token's sequence in packed rows, from ``cu_seqlens`` or position_ids; None: not packed.

    The base packs by position_ids, without cache and mask only: it gets them, and no cache.
    """
    bounds = kwargs.pop("cu_seqlens", None)
    bounds = kwargs.get("cu_seq_lens_q") if bounds is None else bounds  # the name flash attention's collator gives
    tokens, cache = ids.shape[1], kwargs.get("past_key_values")
    if bounds is not None:
        if mask is not None:
            raise ValueError("packed rows (cu_seqlens) have no padding: leave attention_mask out")
        if cache is not None:
            raise ValueError("packed rows (cu_seqlens) cannot go on from a cache: it would be that of the last one")
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = packed_positions(bounds, ids.shape[0], tokens)
    positions = kwargs.get("position_ids")
    if isinstance(mask, dict):  # masks by kind of layer that a multimodal model made, from position_ids as well
        mask = None
    if mask is not None or positions is None or positions.ndim != 2 or positions.shape[1] != tokens or tokens == 1:
        return None
    if cache is not None:
        return None
    segments = segment_ids(positions).expand(ids.shape[0], -1)
    if torch.compiler.is_compiling():
        caches = kwargs.get("use_cache")
        return None if (getattr(body.config, "use_cache", False) if caches is None else caches) else segments
    if not bool(segments.any()):
        return None
    kwargs["use_cache"] = False  # there is nothing to go on from, and the base would take a cache for one sequence
    return segments
