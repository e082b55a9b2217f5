"""Softmax attention within a window in time and memory linear in the length, without a cache or behind one.

A mask of all pairs takes T x T numbers although a token sees W of them. Here W-wide blocks of queries meet the keys of
their own block and of the one before it, which are all that any of them can see.

Legend: B rows, H query heads, Hk key/value heads, T tokens, D head width, C block width, N blocks, s sinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .compat import attention_implementation, base_attention, register_attention
from .slots import slot_of
from .window_cache import window_mask

WINDOWED = "tptt_window"
"""Name of `windowed_attention` among transformers' attention functions."""
_LEAST_BLOCKS = 2
_SINGLE = ("softcap", "s_aux", "position_bias", "head_mask", "output_attentions")
"""Arguments of an attention function that a block would have to be told of one by one: with these the mask is dense."""


@dataclass(frozen=True)
class Band:
    """Who sees whom within a window; it goes to the attention function in the place of a mask.

    Args:
        window: tokens that a query sees, itself included.
        sinks: first real tokens of a row that stay visible beyond it.
        valid: [B, past + T] bool, False at padding; None: all are real.
        sequences: [B, T] number of the packed sequence of each token; None: rows are not packed.
        past: keys of a cache that stand before those of the T queries; then there are neither sinks nor sequences.
    """

    window: int
    sinks: int
    valid: torch.Tensor | None
    sequences: torch.Tensor | None
    past: int = 0

    def __post_init__(self) -> None:
        if self.past and (self.sinks or self.sequences is not None):
            raise ValueError("behind a cache a band has neither sinks nor packed sequences")

    def dense(self, batch: int, tokens: int, device: torch.device) -> torch.Tensor:
        """The mask of all pairs, [B, 1, T, past + T] bool."""
        keys, valid = self.past + tokens, self.valid
        valid = torch.ones(batch, keys, dtype=torch.bool, device=device) if valid is None else valid
        return window_mask(valid, self.window, self.sinks, self.sequences)[:, :, self.past :]

    def fits_blocks(self, tokens: int) -> bool:
        """Whether blocks take less than the mask of all pairs. Sinks of packed rows are left to that mask, and a cache
        that holds more than a window, because tokens may be taken back."""
        if self.past > self.window or (self.sinks and self.sequences is not None):
            return False
        return tokens > _LEAST_BLOCKS * self.window


def windowed_attention(module: nn.Module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """An attention function of transformers: by blocks where the mask is a `Band`, else what the base would compute."""
    band = attention_mask
    if not isinstance(band, Band):
        function = base_attention(module, attention_implementation(slot_of(module).config))
        return function(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if any(kwargs.get(name) is not None and kwargs[name] is not False for name in _SINGLE):
        mask, function = band.dense(len(query), query.shape[2], query.device), base_attention(module, "sdpa")
        return function(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    return banded_attention(query, key, value, band, scaling, dropout).transpose(1, 2).contiguous(), None


register_attention(WINDOWED, windowed_attention)


def banded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    band: Band,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Softmax attention within ``band`` for query [B, H, T, D], key and value [B, Hk, past + T, D]: [B, H, T, D].

    ``scaling`` multiplies the scores, by default D ** -0.5; ``dropout`` is the part of the weights that is dropped.
    """
    batch, heads, tokens, _ = query.shape
    width = band.window
    blocks = -(-tokens // width)
    more = blocks * width - tokens
    query = F.pad(query, (0, 0, 0, more))
    key, value = (F.pad(x, (0, 0, width - band.past, more)) for x in (key, value))  # one block stands before the first
    mask = _block_mask(band, batch, tokens, blocks, query.device)
    keys, values = (_with_sinks(_with_previous(x, width), x[:, :, width:], band) for x in (key, value))
    queries = query.unflatten(2, (blocks, width)).transpose(1, 2).flatten(0, 1)  # [B * N, H, C, D]
    keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (keys, values))  # [B * N, Hk, 2 C + s, D]
    grouped = heads != keys.shape[1]
    if grouped and not query.is_cpu:  # elsewhere groups would cost the kernel that takes a mask
        keys, values = (x.repeat_interleave(heads // keys.shape[1], 1) for x in (keys, values))
        grouped = False
    mask = mask.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]  # [B * N, 1, C, 2 C + s]
    out = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
    )
    return out.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]


def _with_previous(x: torch.Tensor, width: int) -> torch.Tensor:
    """Blocks of [B, Hk, (1 + N) C, D] but the first, each behind the block before it: [B, Hk, N, 2 C, D]."""
    before, own = x[:, :, :-width], x[:, :, width:]
    return torch.cat([part.unflatten(2, (-1, width)) for part in (before, own)], 3)


def _with_sinks(blocks: torch.Tensor, x: torch.Tensor, band: Band) -> torch.Tensor:
    """``blocks`` [B, Hk, N, 2 C, D] with the sinks of ``x`` [B, Hk, N C, D] behind each: [B, Hk, N, 2 C + s, D]."""
    if not band.sinks:
        return blocks
    places = _sink_places(band, len(x), x.device)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    sinks = x.gather(2, places.clamp_min(0))
    return torch.cat([blocks, sinks[:, :, None].expand(-1, -1, blocks.shape[2], -1, -1)], 3)


def _sink_places(band: Band, batch: int, device: torch.device) -> torch.Tensor:
    """[B, s] places of the first s real tokens of each row; -1 where a row has fewer."""
    if band.valid is None:
        return torch.arange(band.sinks, device=device).expand(batch, -1)
    rank = torch.where(band.valid, band.valid.cumsum(1) - 1, -1)
    found = rank[:, :, None] == torch.arange(band.sinks, device=device)  # [B, T, s]
    return torch.where(found.any(1), found.int().argmax(1), -1)


def _block_mask(band: Band, batch: int, tokens: int, blocks: int, device: torch.device) -> torch.Tensor:
    """Who sees whom, [B or 1, N, C, 2 C + s] bool."""
    width = band.window
    query = torch.arange(blocks * width, device=device).view(1, blocks, width, 1)
    key = query.view(1, blocks, 1, width)
    key = torch.cat([key - width, key], 3)
    distance = query - key
    seen = (distance >= 0) & (distance < width) & (key >= -band.past) & (key < tokens)
    if band.valid is not None:
        seen = seen & _of_keys(band.valid, key + band.past, False)
    if band.sequences is not None:
        seen = seen & (_of_keys(band.sequences, key, -1) == _of_keys(band.sequences, query, -2))
    seen = seen | (distance == 0)  # a padded query sees itself: a row without any key would be NaN
    if not band.sinks:
        return seen
    sink = _sink_places(band, batch, device)[:, None, None, :]  # [B, 1, 1, s]
    far = (query - sink >= width) & (sink >= 0)
    return torch.cat([seen.expand(batch, -1, -1, -1), far.expand(batch, -1, -1, -1)], 3)


def _of_keys(x: torch.Tensor, places: torch.Tensor, outside: bool | int) -> torch.Tensor:
    """``x`` [B, T] at ``places`` [1, N, ...]: [B, N, ...]; ``outside`` where a place lies outside of the row."""
    tokens = x.shape[1]
    found = x[:, places.clamp(0, tokens - 1).flatten()].view(len(x), *places.shape[1:])
    return torch.where(
        (places >= 0) & (places < tokens), found, torch.as_tensor(outside, dtype=x.dtype, device=x.device)
    )
