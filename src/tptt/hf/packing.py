"""Packed rows: several sequences in one row. The positions of each begin anew."""

from __future__ import annotations

import torch

from .window_cache import position_in_segment


def sequence_ids(position_ids: torch.Tensor) -> torch.Tensor:
    """[B, T] running number of the sequence each token belongs to, from position_ids [B, T]."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] - position_ids[:, :-1] != 1
    return starts.cumsum(1) - 1


def packed_positions(cu_seqlens: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    """position_ids [1, T] of one row that holds sequences with the bounds ``cu_seqlens`` [N + 1] = 0, ..., T.

    Raises:
        ValueError: there are several rows, or the bounds do not rise from 0 to T.
    """
    bounds = cu_seqlens.flatten().tolist()
    if rows != 1:
        raise ValueError(f"cu_seqlens packs into one row, got a batch of {rows}")
    if bounds[:1] != [0] or bounds[-1] != tokens or any(a > b for a, b in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"cu_seqlens must rise from 0 to the {tokens} tokens of the row, got {bounds}")
    pairs = zip(bounds, bounds[1:], strict=False)
    return torch.cat([torch.arange(b - a, device=cu_seqlens.device) for a, b in pairs])[None]


class Unpacked:
    """Moves [B, T, ...] tensors of packed rows to one row per sequence [S, L, ...] and back.

    Args:
        sequences: [B, T] from `sequence_ids`.
    """

    def __init__(self, sequences: torch.Tensor) -> None:
        counts = sequences[:, -1] + 1
        offset = counts.cumsum(0) - counts
        self.row = sequences + offset[:, None]  # [B, T] number of the sequence over the whole batch
        self.column = position_in_segment(sequences)
        self.shape = (int(counts.sum()), int(self.column.max()) + 1)
        self.mask = torch.zeros(self.shape, dtype=torch.bool, device=sequences.device)
        self.mask[self.row, self.column] = True

    def out(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, ...] -> [S, L, ...], zero where a sequence has ended."""
        rows = x.new_zeros(*self.shape, *x.shape[2:])
        return rows.index_put((self.row, self.column), x)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """[S, L, ...] -> [B, T, ...]."""
        return x[self.row, self.column]
