"""Which tokens are real, which sequence they belong to, and who may see whom within the window.

Legend: B rows, H heads, T new tokens, n keys.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask

from tptt.config import MemoryConfig

from .cache import check_lengths
from .compat import attention_implementation, cache_in
from .packing import packed_positions, sequence_ids
from .prepared_masks import one_of_kinds, token_mask, visible_keys
from .slots import MemorySlot
from .window_attention import Band
from .window_cache import WindowLayer

PASSED_DOWN = ("memory_mask", "memory_sequences")
"""Keywords that travel down from the body to the attention beside the base's own: which tokens are real, and which
packed sequence they belong to, [B, T] each."""


def named_arguments(names: tuple[str, ...], args: tuple, kwargs: dict) -> dict:
    """The arguments of a call, positional ones under their ``names`` too."""
    return dict(zip(names, args, strict=False)) | kwargs


def takes_keywords(module: nn.Module) -> bool:
    """Whether ``module`` can be called with any keyword."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(type(module).forward).parameters.values())


# ---- the body: what is passed down --------------------------------------------------------------------------------


def before_body(
    names: tuple[str, ...],
    config: MemoryConfig,
    slots: list[MemorySlot],
    takes_any: bool,
    body: nn.Module,
    args,
    kwargs,
):
    """Pass the 2-D mask and the packing down as keywords: attention modules get a 4-D mask at best."""
    kwargs = named_arguments(names, args, kwargs)
    ids = kwargs.get("input_ids")
    ids = kwargs.get("inputs_embeds") if ids is None else ids
    if ids is None:
        return (), kwargs
    cache = cache_in(kwargs, type(body).__name__)
    check_lengths(cache)
    mask = kwargs.get("attention_mask")
    real, masked_apart = _said_by_mask(mask, ids.shape[:2], cache, config, body)
    sequences = _packed_sequences(kwargs, ids, mask, body)
    if sequences is None and masked_apart is not None:
        if cache is not None:
            raise ValueError("packed rows cannot go on from a cache, nor fill one: it would be that of the last one")
        kwargs["use_cache"], sequences = False, masked_apart
    for slot in slots:
        slot.running.packed = sequences is not None
    if not takes_any:
        return (), kwargs
    given = kwargs.pop("memory_mask", None)
    if sequences is not None:
        kwargs["memory_sequences"] = sequences
        return (), kwargs
    real = real if given is None else given
    kwargs["memory_mask"] = None if real is None or _all(real) else real
    return (), kwargs


def _said_by_mask(
    mask: Any, shape: tuple[int, int], cache: Any, config: MemoryConfig, body: nn.Module
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which of the new tokens [B, T] of ``shape`` the body's ``mask`` calls real, bool or None: all, and the number of
    each one's packed sequence, or None.

    Raises:
        TypeError: it is no mask.
        ValueError: it does not fit the tokens, or says what a memory or its window cannot follow (`token_mask`).
    """
    mask, (batch, tokens) = one_of_kinds(mask), shape
    if mask is None:
        return None, None
    past = 0 if cache is None else cache.get_seq_length()
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return _said_by_padding_mask(mask, batch, tokens, past), None
    if not isinstance(mask, torch.Tensor | BlockMask) or (isinstance(mask, torch.Tensor) and mask.ndim not in (3, 4)):
        kind = f"a {mask.ndim}-D tensor" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(
            f"attention_mask must be 2-D [B, T], 4-D [B, 1, T, n], a BlockMask, or a dictionary of these, got {kind}"
        )
    if tokens == 1 or torch.compiler.is_compiling():  # no question to a device here
        return (None if isinstance(mask, BlockMask) else _diagonal(mask, tokens, past).expand(batch, -1)), None
    keys = int(past) + tokens
    visible = visible_keys(mask, tokens, keys)
    visible = visible.expand(batch, tokens, visible.shape[-1])
    before = int(past) if visible.shape[-1] >= keys else visible.shape[-1] - tokens
    found = token_mask(visible, before, getattr(body.config, "sliding_window", None), config.bidirectional)
    if found.looks_ahead and config.window is not None and not config.bidirectional:
        raise ValueError(
            "the attention mask shows later tokens to earlier ones, which the window (max_self_attn_length) would "
            "hide: use a causal mask, or a model without a window"
        )
    return found.real, found.sequences


def _said_by_padding_mask(mask: torch.Tensor, batch: int, tokens: int, past: Any) -> torch.Tensor:
    width = mask.shape[1]
    if mask.shape[0] not in (1, batch) or (not isinstance(past, torch.Tensor) and width != past + tokens):
        raise ValueError(
            f"attention_mask is {list(mask.shape)}: it must cover the {past} tokens in the cache and the {tokens} "
            f"new ones of each of {batch} rows"
        )
    if isinstance(past, torch.Tensor):  # of a static cache, whose length lies on the device
        at = (past + torch.arange(tokens, device=mask.device)).clamp_max(width - 1)
        return mask.index_select(1, at).bool().expand(batch, -1)
    return mask[:, past:].bool().expand(batch, -1)


def _all(real: torch.Tensor) -> bool:
    """Whether every token is real, where asking costs nothing: on a GPU the answer would have to be waited for, and a
    mask that pads nothing is right as well."""
    return real.is_cpu and not torch.compiler.is_compiling() and bool(real.all())


def _packed_sequences(kwargs: dict, ids: torch.Tensor, mask, body: nn.Module) -> torch.Tensor | None:
    """[B, T] number of each token's sequence in packed rows, from ``cu_seqlens`` or position_ids; None: not packed.

    The base packs by position_ids, without cache and mask only: it gets them, and no cache.
    """
    bounds = kwargs.pop("cu_seqlens", None)
    bounds = kwargs.get("cu_seq_lens_q") if bounds is None else bounds  # the name flash attention's collator gives
    tokens, cache = ids.shape[1], cache_in(kwargs, type(body).__name__)
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
    sequences = sequence_ids(positions).expand(ids.shape[0], -1)
    if torch.compiler.is_compiling():
        caches = kwargs.get("use_cache")
        return None if (getattr(body.config, "use_cache", False) if caches is None else caches) else sequences
    if not bool(sequences.any()):
        return None
    kwargs["use_cache"] = False  # there is nothing to go on from, and the base would take a cache for one sequence
    return sequences


# ---- the attention: real tokens and the window --------------------------------------------------------------------


def real_tokens(mask: torch.Tensor, tokens: int, layer, says_hidden: bool) -> torch.Tensor | None:
    """Which of the new tokens are real, [B, T] bool, where only a prepared mask arrives: the diagonal of a 4-D (3-D)
    one.

    A bool mask says who is seen, or, with ``says_hidden``, who is not.
    """
    if mask.ndim == 2:
        return mask[:, -tokens:].bool()
    if tokens == 1:
        return None
    return _diagonal(mask, tokens, 0 if layer is None else layer.get_seq_length(), says_hidden)


def _diagonal(mask: torch.Tensor, tokens: int, past: Any, says_hidden: bool = False) -> torch.Tensor:
    """[B, T] bool: whether each of the last ``tokens`` sees itself, by a 4-D (3-D) mask of keys with ``past``
    before."""
    if mask.ndim == 3:
        mask = mask[:, None]
    rows = torch.arange(tokens, device=mask.device)
    whole = isinstance(past, torch.Tensor) or mask.shape[-1] >= past + tokens  # else that of a sliding layer
    columns = rows + (past if whole else mask.shape[-1] - tokens)
    diagonal = mask[:, 0, rows.clamp(max=mask.shape[-2] - 1), columns]  # one row, if it says what is padding only
    if diagonal.dtype != torch.bool:
        return diagonal >= 0
    return ~diagonal if says_hidden else diagonal


def apply_window(slot: MemorySlot, hidden: torch.Tensor, kwargs: dict, mask, sequences, layer) -> None:
    """Put the window into ``kwargs``, the arguments of the attention module: the mask in the form its implementation
    takes, and ALiBi biases of the keys that are left.

    Args:
        slot: of the module; its softmax has a window now.
        hidden: the layer's input, [B, T, hidden].
        mask: [B, T] bool, False at padding, or None.
        sequences: [B, T] number of each token's packed sequence, or None.
        layer: the cache layer, or None.

    Raises:
        ValueError: the attention implementation takes no such mask.
    """
    kind = attention_implementation(slot.config)
    if kind not in ("eager", "sdpa"):
        raise ValueError(f"max_self_attn_length needs attn_implementation 'sdpa' or 'eager', not {kind!r}")
    batch, tokens = hidden.shape[:2]
    if mask is not None:
        mask = mask.expand(batch, -1)
    window = slot.window_now
    assert window is not None
    of_layer = isinstance(layer, WindowLayer)
    if not of_layer and tokens <= window and sequences is None:
        return
    can = slot.knows_windows and kind == "sdpa" and kwargs.get("alibi") is None and not torch.compiler.is_compiling()
    shape = (batch, tokens, hidden.device)
    by_blocks = _band(window, slot.sinks, mask, sequences, layer if of_layer else None, *shape) if can else None
    if by_blocks is not None:
        if of_layer:
            layer.prepare(mask, batch, tokens, hidden.device, by_blocks=True)
        kwargs["attention_mask"] = by_blocks
        return
    if of_layer:
        has_alibi = kwargs.get("alibi") is not None
        band = layer.prepare(mask, batch, tokens, hidden.device, ordered=has_alibi)
        if has_alibi:
            kwargs["alibi"] = _biases_of_keys(kwargs["alibi"], layer.slots)
    else:
        band = Band(window, slot.sinks, mask, sequences).dense(batch, tokens, hidden.device)
    if band is not None and kind == "eager":
        zeros = torch.zeros(band.shape, dtype=hidden.dtype, device=band.device)
        band = zeros.masked_fill(~band, torch.finfo(hidden.dtype).min)
    kwargs["attention_mask"] = band


def _band(window: int, sinks: int, mask, sequences, layer: WindowLayer | None, batch, tokens, device) -> Band | None:
    """Who sees whom, where blocks take less than a mask; None elsewhere, and where the keys of ``layer`` begin with
    sinks, which blocks do not expect there."""
    if layer is None:
        band = Band(window, sinks, mask, sequences)
        return band if band.fits_blocks(tokens) else None
    if layer.sinks:
        return None
    band = Band(window, 0, None, None, layer.kept)
    if not band.fits_blocks(tokens):  # a decoding step ends here: which keys are real is not put together for it
        return None
    return replace(band, valid=layer.valid_with(mask, batch, tokens, device))


def _biases_of_keys(alibi: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The columns ``slots`` [B, n] of ALiBi biases [B * H, 1, tokens so far]."""
    rows = alibi.shape[0] // slots.shape[0]
    return alibi.gather(-1, slots.clamp_min(0).repeat_interleave(rows, 0)[:, None].expand(-1, alibi.shape[1], -1))
