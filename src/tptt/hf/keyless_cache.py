"""A cache layer that counts tokens and keeps nothing of them."""

from __future__ import annotations

import torch

from .compat import CacheLayerMixin


def mask_sizes(stock, seen: int, query_length: int) -> tuple[int, int]:
    """Length and offset of the mask for ``query_length`` tokens after ``seen`` ones in a ``stock`` dynamic layer, which
    holds nothing itself."""
    if stock.is_sliding:
        stock.cumulative_length = seen
        return stock.get_mask_sizes(query_length)
    return seen + query_length, 0


class KeylessLayer(CacheLayerMixin):
    """For attention without softmax.

    Args:
        is_sliding: whether the base takes its mask for sliding layers here.
        stock: a layer of the kind the base has here, whose mask sizes are reported because other layers take that mask;
            None: nobody looks at it.
    """

    def __init__(self, is_sliding: bool = False, stock=None) -> None:
        super().__init__()
        self.is_sliding, self.stock = is_sliding, stock
        self.cumulative_length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (  # of their own, or they would keep the whole tensors alive
            x.new_empty(*x.shape[:2], 0, x.shape[-1]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[2]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.stock is None:
            return query_length, self.cumulative_length
        return mask_sizes(self.stock, self.cumulative_length, query_length)

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.cumulative_length += tokens_to_remove

    def reset(self) -> None:
        self.cumulative_length = 0

    def offload(self) -> None:
        """Nothing to move."""

    def prefetch(self) -> None:
        """Nothing to move."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Nothing to move."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Nothing to move."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Nothing to move."""
