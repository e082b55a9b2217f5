"""Keys and values of the last W tokens and of the first real ones (sinks), and who may see whom.

Legend: B batch, n new tokens, r kept recent tokens, s sinks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .compat import DynamicLayer
from .keyless_cache import mask_sizes


def window_mask(valid: torch.Tensor, window: int, sinks: int, segments: torch.Tensor | None = None) -> torch.Tensor:
    """Band of a sequence without cache: [B, 1, T, T] bool, True where query t may see key j.

    Args:
        valid: [B, T] bool, False at padding.
        window: tokens a query sees, itself included.
        sinks: first valid tokens of a sequence that stay visible.
        segments: [B, T] number of the packed sequence each token belongs to, or None; packed rows have no padding.
    """
    slots = torch.arange(valid.shape[1], device=valid.device)
    rank = valid.cumsum(1) - 1 if segments is None else position_in_segment(segments)
    seen = _visible(slots, slots[None], valid, (rank < sinks) & valid, window)
    return seen if segments is None else seen & (segments[:, None, :, None] == segments[:, None, None, :])


def position_in_segment(segments: torch.Tensor) -> torch.Tensor:
    """[B, T] place of each token in its own packed sequence, from ``segments`` [B, T]."""
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    at = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    return at - torch.where(first, at, 0).cummax(1).values


def _visible(queries, keys, valid, sink, window):
    """[B, 1, n, K] from slots queries [n] and keys [B or 1, K], and valid, sink [B, K]."""
    distance = queries[None, :, None] - keys[:, None, :]
    seen = valid[:, None, :] & (distance >= 0) & ((distance < window) | sink[:, None, :])
    # a padded query sees itself: a row without any key would be NaN
    return (seen | (distance == 0))[:, None]


class Prepared(NamedTuple):
    """What `WindowLayer.prepare` has said of the next call: its tokens, and which are real and which sinks, [B, n] bool
    each; None: one token, which goes through the ring."""

    tokens: int
    valid: torch.Tensor | None
    sink: torch.Tensor | None


class WindowLayer(DynamicLayer):
    """At most W - 1 + sinks entries between calls; the tokens of a call see each other and what was kept.

    `prepare` has to be called once before each `update`, with which tokens are real; it returns the mask for `update`'s
    result, whose keys come from ``slots`` [B, s + r + n] of the sequence (-1: none).

    Once the window is full, a token alone takes the place of the one that falls out of it: keys and values lie in a
    ring of W behind the sinks, every one of them is seen, and a step copies nothing.

    Args:
        window: W.
        sinks: s.
        is_sliding, stock: as `KeylessLayer`'s.
    """

    record_past = False
    removable = 0
    """Tokens beyond the window that are kept, because they may be needed again (`MemoryState.removable`)."""

    def __init__(self, window: int, sinks: int = 0, is_sliding: bool = False, stock=None) -> None:
        super().__init__()
        self.is_sliding, self.stock = is_sliding, stock
        self.slots: Any = None
        self.sliding_window, self.sinks = window, sinks
        self.cumulative_length = 0
        self._valid: Any = None  # [B, r] bool
        self._is_sink: Any = None  # [B, r] bool
        self._prepared: Prepared | None = None
        self._sink_keys: Any = None  # [B, Hk, s, D]
        self._sink_values: Any = None
        self._sink_slots: Any = None  # [B, s], -1 where not filled
        self.keys: Any = None
        self.values: Any = None
        self._ring: Any = None  # keys and values [B, Hk, s + W, D], while tokens come one by one
        self._free = 0  # place in the ring of the token that has fallen out of the window
        self._padded = False

    @property
    def kept(self) -> int:
        """r, the entries between calls that are no sinks."""
        return 0 if self._valid is None else self._valid.shape[1]

    def valid_with(self, valid: torch.Tensor | None, batch: int, n: int, device: torch.device) -> torch.Tensor | None:
        """Which of the entries that are kept and of n new tokens are real, [B, r + n] bool; None: all are.

        Args: as `prepare`'s.
        """
        if valid is None and not self._padded:
            return None
        new = torch.ones(batch, n, dtype=torch.bool, device=device) if valid is None else valid
        return new if self._valid is None else torch.cat([self._valid, new], 1)

    def prepare(
        self,
        valid: torch.Tensor | None,
        batch: int,
        n: int,
        device: torch.device,
        ordered: bool = False,
        by_blocks: bool = False,
    ) -> torch.Tensor | None:
        """Mask [B, 1, n, s + r + n] for the next n tokens of a batch; None: all is seen.

        Args:
            valid: [B, n] bool, False at padding; None: all are real.
            batch, n, device: shape of the call, and where it runs.
            ordered: the keys have to come in the order of ``slots``.
            by_blocks: no mask is asked for.
        """
        self._padded |= valid is not None
        if not ordered and self._is_steady(n):
            self._prepared = Prepared(n, None, None)
            return None
        self.linearize()
        if valid is None:
            valid = torch.ones(batch, n, dtype=torch.bool, device=device)
        past = self.cumulative_length
        if self._valid is None:
            self._valid = self._is_sink = valid.new_zeros(batch, 0)
            self._sink_slots = torch.full((batch, self.sinks), -1, device=valid.device)
        filled = (self._sink_slots >= 0).sum(1, keepdim=True)
        sink = valid & (filled + valid.cumsum(1) - 1 < self.sinks)
        self._prepared = Prepared(n, valid, sink)
        if by_blocks:
            return None
        kept = self.kept
        slots = torch.arange(past - kept, past + n, device=valid.device)[None].expand(batch, -1)
        gone = (self._sink_slots >= 0) & (self._sink_slots < past - kept)  # the others are still among the recent
        self.slots = keys = torch.cat([self._sink_slots, slots], 1)
        every = torch.cat([gone, self._valid, valid], 1)
        sinks = torch.cat([gone, self._is_sink, sink], 1)
        return _visible(slots[0, kept:], keys, every, sinks, self.sliding_window)

    def _is_steady(self, n: int) -> bool:
        """Whether the next call can go through the ring: one token, a full window, sinks behind it, nothing to take
        back."""
        if n != 1 or self._padded or self.record_past or torch.compiler.is_compiling():
            return False
        return self.cumulative_length >= self.sliding_window - 1 + self.sinks

    def _turn(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one token into the ring, which is made where there is none."""
        if self._ring is None or (self._ring[0].is_inference() and not torch.is_inference_mode_enabled()):
            self.linearize()
            parts = ((self._sink_keys, self.keys, key_states), (self._sink_values, self.values, value_states))
            self._ring, self._free = tuple(torch.cat(x, 2) for x in parts), self.sliding_window - 1
            self._sink_keys, self._sink_values = (x[:, :, : self.sinks] for x in self._ring)  # not held twice
        for kept, new in zip(self._ring, (key_states, value_states), strict=True):
            kept[:, :, self.sinks + self._free] = new.detach()[:, :, 0]
        self._free = (self._free + 1) % self.sliding_window
        self.keys, self.values = (x[:, :, self.sinks :] for x in self._ring)
        self.cumulative_length += 1
        return self._ring

    def linearize(self) -> None:
        """Leave the ring: keys and values in the order of their tokens, as everything but a step needs them."""
        if self._ring is None:
            return
        order = torch.arange(1, self.sliding_window, device=self._ring[0].device) + self._free
        order = self.sinks + order % self.sliding_window
        self.keys, self.values = (x.index_select(2, order) for x in self._ring)
        self._sink_keys, self._sink_values = (x[:, :, : self.sinks].clone() for x in self._ring)  # or it would live on
        self._ring = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Keys and values [B, Hk, s + r + n, D]: sinks, recent, new.

        Raises:
            RuntimeError: `prepare` was not called since the last update, or for another number of tokens.
        """
        valid, sink = self._take_prepared(key_states.shape[2])
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            shape = (*key_states.shape[:2], self.sinks)
            self._sink_keys = key_states.new_zeros(*shape, key_states.shape[-1])
            self._sink_values = value_states.new_zeros(*shape, value_states.shape[-1])
        if valid is None or sink is None:
            return self._turn(key_states, value_states)
        keys, values = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        seen = (torch.cat([self._sink_keys, keys], 2), torch.cat([self._sink_values, values], 2))
        self._keep_sinks(key_states, value_states, sink)
        self.cumulative_length += key_states.shape[2]
        self.keys, self.values = keys, values
        self._valid, self._is_sink = torch.cat([self._valid, valid], 1), torch.cat([self._is_sink, sink], 1)
        self._trim()
        return seen

    def _take_prepared(self, tokens: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What `prepare` has said of these ``tokens``; only once."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            raise RuntimeError(
                f"this cache layer keeps the last {self.sliding_window} tokens, and the attention that updates it "
                "has no such window: the cache was made by another model, or the memory is switched off. Start from "
                "an empty cache"
            )
        if prepared.tokens != tokens:
            raise RuntimeError(f"the cache layer was prepared for {prepared.tokens} tokens and gets {tokens}")
        self.slots = None
        return prepared.valid, prepared.sink

    def _keep_sinks(self, keys: torch.Tensor, values: torch.Tensor, sink: torch.Tensor) -> None:
        if not self.sinks:
            return
        filled = (self._sink_slots >= 0).sum(1, keepdim=True)
        rank = torch.where(sink, filled + sink.cumsum(1) - 1, -1)
        for j in range(self.sinks):
            here = rank == j
            has, at = here.any(1), here.to(torch.int8).argmax(1)
            rows = torch.arange(len(at), device=at.device)
            take = has[:, None, None]
            self._sink_keys[:, :, j] = torch.where(take, keys[rows, :, at], self._sink_keys[:, :, j])
            self._sink_values[:, :, j] = torch.where(take, values[rows, :, at], self._sink_values[:, :, j])
            self._sink_slots[:, j] = torch.where(has, at + self.cumulative_length, self._sink_slots[:, j])

    def _trim(self) -> None:
        cut = max(0, self.keys.shape[2] - (self.sliding_window - 1) - self.removable)
        self.keys, self.values = self.keys[:, :, cut:].clone(), self.values[:, :, cut:].clone()  # frees what is cut
        self._valid, self._is_sink = self._valid[:, cut:].clone(), self._is_sink[:, cut:].clone()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens and go back to the window; `MemoryState.crop` has checked that they were recorded."""
        if not self.is_initialized:
            return
        self.linearize()
        end = self.keys.shape[2] + tokens_to_remove
        self.cumulative_length += tokens_to_remove
        self.keys, self.values = self.keys[:, :, :end], self.values[:, :, :end]
        self._valid, self._is_sink = self._valid[:, :end], self._is_sink[:, :end]
        self._sink_slots = self._sink_slots.masked_fill(self._sink_slots >= self.cumulative_length, -1)
        self._trim()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.stock is not None:
            return mask_sizes(self.stock, self.cumulative_length, query_length)
        return self.kept + query_length, self.cumulative_length - self.kept

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return self.sliding_window

    def reset(self) -> None:
        super().reset()
        self._valid = self._is_sink = self._prepared = None
        self._sink_keys = self._sink_values = self._sink_slots = self.slots = self._ring = None
        self._padded = False

    def _apply(self, function) -> None:
        """``function`` on every tensor of the layer: dimension 0 is the batch in all of them."""
        self.linearize()
        for name in ("keys", "values", "_valid", "_is_sink", "_sink_keys", "_sink_values", "_sink_slots"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, function(value))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._apply(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._apply(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._apply(lambda x: x[indices.to(x.device)])

    def offload(self) -> None:
        """It does not grow: it stays on its device."""

    def prefetch(self) -> None:
        """It never left."""
