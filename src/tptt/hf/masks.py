"""Which tokens are real, which sequence they belong to, and who may see whom within the window.

Legend: B rows, H heads, T new tokens, n keys.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from tptt.config import MemoryConfig

from .cache import check_lengths
from .compat import attention_implementation, cache_in
from .packing import packed_positions, sequence_ids
from .slots import MemorySlot
from .window_attention import Band
from .window_cache import WindowLayer

PASSED_DOWN = ("memory_mask", "memory_sequences")
"""Keywords that travel down from the body to the attention beside the base's own: which tokens are real, and which packed
sequence they belong to, [B, T] each."""


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
    mask, tokens = kwargs.get("attention_mask"), ids.shape[1]
    if config.window is not None and isinstance(mask, torch.Tensor) and mask.ndim > 2:
        raise ValueError(f"with max_self_attn_length the attention mask must be 2-D, [B, T]; got {tuple(mask.shape)}")
    check_lengths(cache_in(kwargs, type(body).__name__))
    sequences = _packed_sequences(kwargs, ids, mask, body)
    for slot in slots:
        slot.running.packed = sequences is not None
    if not takes_any:
        return (), kwargs
    if sequences is not None:
        kwargs["memory_sequences"] = sequences
        return (), kwargs
    real = kwargs.pop("memory_mask", None)
    if real is None and isinstance(mask, torch.Tensor) and mask.ndim == 2:
        real = mask[:, -tokens:].bool()
    if real is not None or mask is None:  # else a prepared mask says it
        kwargs["memory_mask"] = None if real is None or _all(real) else real
    return (), kwargs


def _all(real: torch.Tensor) -> bool:
    """Whether every token is real, where asking costs nothing: on a GPU the answer would have to be waited for, and a mask
    that pads nothing is right as well."""
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


def apply_window(slot: MemorySlot, hidden: torch.Tensor, kwargs: dict, mask, sequences, layer) -> None:
    """Put the window into ``kwargs``, the arguments of the attention module: the mask in the form its implementation takes,
    and ALiBi biases of the keys that are left.

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
    if isinstance(layer, WindowLayer):
        has_alibi = kwargs.get("alibi") is not None
        band = layer.prepare(mask, batch, tokens, hidden.device, ordered=has_alibi)
        if has_alibi:
            kwargs["alibi"] = _biases_of_keys(kwargs["alibi"], layer.slots)
    elif tokens <= window and sequences is None:
        return
    else:
        wanted = Band(window, slot.sinks, mask, sequences)
        by_blocks = slot.knows_windows and kind == "sdpa" and wanted.fits_blocks(tokens)
        if by_blocks and not torch.compiler.is_compiling():
            kwargs["attention_mask"] = wanted
            return
        band = wanted.dense(batch, tokens, hidden.device)
    if band is not None and kind == "eager":
        zeros = torch.zeros(band.shape, dtype=hidden.dtype, device=band.device)
        band = zeros.masked_fill(~band, torch.finfo(hidden.dtype).min)
    kwargs["attention_mask"] = band


def _biases_of_keys(alibi: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The columns ``slots`` [B, n] of ALiBi biases [B * H, 1, tokens so far]."""
    rows = alibi.shape[0] // slots.shape[0]
    return alibi.gather(-1, slots.clamp_min(0).repeat_interleave(rows, 0)[:, None].expand(-1, alibi.shape[1], -1))
