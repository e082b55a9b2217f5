"""Fourier features of many vectors, and their gradient, each in one pass over memory.

Legend: M height of the mapped vectors, C frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tracing import are_ordinary, traced
from . import structs
from .library import library, unavailable

_UNIT = 16


def fourier_serves(mapped: Tensor) -> bool:
    """Whether the kernels take vectors like ``mapped`` [..., M]."""
    takes = mapped.device.type == "cpu" and mapped.dtype == torch.float32 and mapped.shape[-1] % _UNIT == 0
    return takes and are_ordinary(mapped) and not traced() and unavailable() is None


def _padded(count: int) -> int:
    return -(-count // _UNIT) * _UNIT


def fourier(mapped: Tensor, frequencies: Tensor) -> Tensor:
    """[cos(F z), sin(F z)] / sqrt(C) [..., 2 C] of z = ``mapped`` [..., M], F = ``frequencies`` [C, M], float32."""
    count, height = frequencies.shape
    mapped, across = mapped.contiguous(), F.pad(frequencies.T, (0, _padded(count) - count)).contiguous()
    out = mapped.new_empty(*mapped.shape[:-1], 2 * count)
    library().fourier(
        structs.FOURIER.pack(
            mapped.numel() // height,
            height,
            count,
            across.shape[1],
            torch.get_num_threads(),
            mapped.data_ptr(),
            across.data_ptr(),
            out.data_ptr(),
            0,  # d_out
            0,  # d_mapped
        )
    )
    return out


def fourier_backward(out: Tensor, d_out: Tensor, frequencies: Tensor) -> Tensor:
    """The gradient of z [..., M], from the features `out` that `fourier` returned and their gradient `d_out`."""
    count, height = frequencies.shape
    d_out, frequencies = d_out.contiguous(), frequencies.contiguous()
    d_mapped = out.new_empty(*out.shape[:-1], height)
    library().fourier_backward(
        structs.FOURIER.pack(
            d_mapped.numel() // height,
            height,
            count,
            _padded(count),
            torch.get_num_threads(),
            0,  # mapped
            frequencies.data_ptr(),
            out.data_ptr(),
            d_out.data_ptr(),
            d_mapped.data_ptr(),
        )
    )
    return d_mapped
