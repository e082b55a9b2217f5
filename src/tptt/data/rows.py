"""Token rows of equal length."""

from __future__ import annotations

import torch


def pack_rows(stream: torch.Tensor, length: int) -> torch.Tensor:
    """Cut a stream ``[n]`` of token ids into rows ``[n // length, length]`` of int64; the remainder is dropped.

    Raises:
        ValueError: the stream is shorter than one row, or ``length`` is below 1.
    """
    if length < 1:
        raise ValueError(f"a row has 1 token or more, not {length}")
    rows = len(stream) // length
    if rows == 0:
        raise ValueError(f"the text has {len(stream)} tokens, one row needs {length}")
    return stream[: rows * length].long().view(rows, length)
