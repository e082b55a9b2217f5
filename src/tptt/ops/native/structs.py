"""kernels/abi.h as packed bytes; change both together (library.py compares the sizes).

Packing a `struct.Struct` takes less time than filling a ctypes.Structure, which counts in a step of one token.
"""

from __future__ import annotations

import struct

import torch

_INT64, _INT32, _FLOAT, _POINTER, _TENSOR = "q", "i", "f", "P", "P4q"


def _layout(*fields: tuple[str, str]) -> struct.Struct:
    """A struct of these fields, each (type, names), with the alignment of C."""
    return struct.Struct("@" + "".join(kind * len(names.split()) for kind, names in fields))


PROBLEM = _layout(
    (_INT64, "batch tokens writes heads groups key_width value_width chunk chunk_group kept threads"),
    (_FLOAT, "scale"),
    (_INT32, "delta bfloat16"),
    (_TENSOR, "q k v beta g o"),
    (_POINTER, "initial_state final_state saved"),
    (_TENSOR, "d_o d_q d_k d_v d_beta d_g"),
    (_POINTER, "d_final_state d_initial_state"),
)
"""TpttProblem."""
FORWARD_ONLY = (0,) * 32
"""The fields of a TpttProblem from d_o on, in a forward."""

STEP = _layout(
    (_INT64, "batch writes heads groups key_width value_width threads"),
    (_FLOAT, "scale"),
    (_INT32, "delta bfloat16"),
    (_POINTER, "q k v beta g state o"),
)
"""TpttStep."""

FOURIER = _layout(
    (_INT64, "rows height count padded threads"),
    (_POINTER, "mapped frequencies out d_out d_mapped"),
)
"""TpttFourier."""

MEMORY_STEP = _layout(
    (_INT64, "batch states groups copies"),
    (_INT64, "head_width map_height value_width hidden_width feature_width mix_width threads"),
    (_INT32, "delta bfloat16 features"),
    (_POINTER, "q k v hidden softmax query_map key_map write_weight write_bias decay_weight decay_bias"),
    (_POINTER, "mix_weight mix_bias mix_down frequencies output_scale mag_weight mix_input state out"),
)
"""TpttMemoryStep."""

SIZES = tuple(layout.size for layout in (PROBLEM, STEP, MEMORY_STEP, FOURIER))
"""In the order of tptt_sizes (kernels/dispatch.cpp)."""
ABSENT = (0,) * 5
"""A TpttTensor that is not there."""


def pointer(x: torch.Tensor | None) -> int:
    """Where the data of ``x`` lies; null for None."""
    return 0 if x is None else x.data_ptr()


def view(x: torch.Tensor | None) -> tuple[int, ...]:
    """TpttTensor of x [B, T, heads, width] or [B, T, heads], which has no axis of writes."""
    if x is None:
        return ABSENT
    batch, token, head = x.stride()[:3]
    return x.data_ptr(), batch, token, 0, head


def view_with_writes(x: torch.Tensor | None) -> tuple[int, ...]:
    """TpttTensor of x [B, T, N, H, width] or [B, T, N, H]."""
    return ABSENT if x is None else (x.data_ptr(), *x.stride()[:4])
