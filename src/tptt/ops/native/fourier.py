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
        structs.Fourier(
            rows=mapped.numel() // height,
            height=height,
            count=count,
            padded=across.shape[1],
            threads=torch.get_num_threads(),
            mapped=mapped.data_ptr(),
            frequencies=across.data_ptr(),
            out=out.data_ptr(),
        )
    )
    return out


def fourier_backward(out: Tensor, d_out: Tensor, frequencies: Tensor) -> Tensor:
    """The gradient of z [..., M], from the features `out` that `fourier` returned and their gradient `d_out`."""
    count, height = frequencies.shape
    d_out, frequencies = d_out.contiguous(), frequencies.contiguous()
    d_mapped = out.new_empty(*out.shape[:-1], height)
    library().fourier_backward(
        structs.Fourier(
            rows=d_mapped.numel() // height,
            height=height,
            count=count,
            padded=_padded(count),
            threads=torch.get_num_threads(),
            frequencies=frequencies.data_ptr(),
            out=out.data_ptr(),
            d_out=d_out.data_ptr(),
            d_mapped=d_mapped.data_ptr(),
        )
    )
    return d_mapped
