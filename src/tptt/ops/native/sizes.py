"""How the kernels cut a call into chunks, and what a forward leaves for its backward."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..call import Inputs
from .library import library

POSITIONS = 32
"""Positions of a chunk, about."""
POSITIONS_ALONE = 16
"""The same for a forward without a backward, of several chunks and one write per token: smaller triangles gain more
there than walking over the state more often costs. Where there are tiles, chunks must fill them instead."""
CHUNK_GROUP = 8
"""Chunks between two saved states, at least."""
KEPT_BYTES = 32 << 20
"""Of one call that a forward keeps for its backward at most: 512 tokens, 3 heads and 2048 features take 26 MB. Computed
again instead, they would make that backward a quarter longer; longer calls save a state per chunk group."""
_WIDE_KEYS = 512
"""From this width on rows of keys are padded in another way."""


class ChunkSizes(NamedTuple):
    """How a sequence is cut."""

    tokens: int  # of a chunk, a multiple of 4
    group: int  # chunks between two saved states


def writes_of(k: torch.Tensor) -> int:
    """N of k [B, T, N, H, K] or [B, T, H, K]."""
    return k.shape[2] if k.dim() == 5 else 1


def chunk_sizes(k: torch.Tensor, v: torch.Tensor, keep: bool) -> ChunkSizes:
    """How the kernels cut these keys and values; `keep`: there will be, or is, a backward."""
    tokens, writes, narrow = k.shape[1], writes_of(k), min(k.shape[-1], v.shape[-1])
    alone = not keep and writes == 1 and tokens > POSITIONS
    positions = max(POSITIONS_ALONE, _padding(k.dtype)) if alone else POSITIONS
    chunk = min(max(4, positions // writes // 4 * 4), -(-tokens // 4) * 4)
    # a saved state then costs at most a third of its keys or of its values
    return ChunkSizes(chunk, max(CHUNK_GROUP, -(-3 * narrow // chunk)))


def saved_shape(inputs: Inputs) -> tuple[int, ...]:
    """Shape of what a forward leaves for the backward: where that is little, [B, H, chunks, floats], all that the
    backward needs of every chunk; else [B, H, chunk groups, K, V], the state before each chunk group."""
    q, k, v, *_ = inputs
    (batch, tokens), (heads, key_width), value_width = k.shape[:2], k.shape[-2:], v.shape[-1]
    chunk, group = chunk_sizes(k, v, True)
    chunks = -(-tokens // chunk)
    queries, padding = chunk * (q.shape[2] // heads), _padding(q.dtype)
    floats = _floats_of_a_chunk(key_width, value_width, chunk * writes_of(k), queries, padding)
    if 4 * batch * heads * chunks * floats <= KEPT_BYTES:
        return batch, heads, chunks, floats
    return batch, heads, -(-chunks // group), key_width, value_width


def _floats_of_a_chunk(keys, values, positions, queries, padding):
    """Kept::floats in kernels/forward.h."""
    values, positions, queries = (-(-width // padding) * padding for width in (values, positions, queries))
    keys = _spread_rows(keys, padding)
    return keys * values + (positions + queries) * positions + positions * values


def _spread_rows(width, padding):
    """spread_rows in kernels/chunk.h."""
    if width < _WIDE_KEYS:
        return -(-width // padding) * padding
    step = max(16, padding)
    steps = -(-width // step)
    return step * (steps + (steps % 2 == 0))


def _padding(dtype):
    """PADDING of the kernels that serve this dtype."""
    instructions = library().instructions
    if instructions == "amx":
        return 32 if dtype == torch.bfloat16 else 16
    return {"portable": 4, "avx2": 8, "avx512": 16}[instructions]
