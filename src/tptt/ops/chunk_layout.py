"""Copies between the public layout [B, T, heads, ...] and the chunks [n, B, H, ..., C, width] of one chunk group.

Chunk-major copies are contiguous per chunk and small enough to stay in a cache. Here inputs are also cast to the
state's dtype, and the last chunk is padded with zeros (beta = 0 and g = 0 leave the state untouched).
Legend: n chunks of C tokens each in the chunk group, H key/value heads, G query heads per key/value head.
"""

import torch
from torch.nn import functional


def gather(x, start, chunks, size, dtype):
    """[B, T, H, *rest] -> [n, B, H, C, *rest]: the `chunks * size` tokens from `start` on, zeros after the end."""
    batch, _, heads, *rest = x.shape
    part = x[:, start : start + chunks * size]
    missing = chunks * size - part.shape[1]
    if missing:
        part = functional.pad(part, [0, 0] * (x.dim() - 2) + [0, missing])
    out = torch.empty(chunks, batch, heads, size, *rest, dtype=dtype, device=x.device)
    out.permute(1, 0, 3, 2, *range(4, out.dim())).copy_(part.unflatten(1, (chunks, size)))
    return out


def gather_grouped(x, start, chunks, size, heads, dtype):
    """[B, T, G*H, K] -> [n, B, H, G * C, K]: what `gather` does, with the G query heads of each of H heads together."""
    grouped = gather(x, start, chunks, size, dtype).unflatten(2, (heads, -1))
    return grouped.flatten(3, 4)


def scatter(out, start, chunked):
    """Inverse of `gather`: write [n, B, H, C, *rest] to the tokens of out [B, T, H, *rest] from `start` on."""
    _write(out, start, chunked.permute(1, 0, 3, 2, *range(4, chunked.dim())))


def scatter_grouped(out, start, chunked):
    """Inverse of `gather_grouped`: write [n, B, H, G, C, V] to the tokens of out [B, T, G*H, V] from `start` on."""
    heads, groups = chunked.shape[2:4]
    _write(out.unflatten(2, (heads, groups)), start, chunked.permute(1, 0, 4, 2, 3, 5))


def _write(out, start, tokens):
    """tokens [B, n, C, ...] -> out [B, T, ...], dropping what lies beyond T."""
    chunks, size = tokens.shape[1:3]
    part = out[:, start : start + chunks * size]
    if part.shape[1] == chunks * size:
        part.unflatten(1, (chunks, size)).copy_(tokens)
    else:
        part.copy_(tokens.flatten(1, 2)[:, : part.shape[1]])
