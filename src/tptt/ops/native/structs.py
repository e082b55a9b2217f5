"""kernels/abi.h in ctypes; change both together (library.py compares the sizes)."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import torch


class Tensor(ctypes.Structure):
    """A tensor with up to four axes before its contiguous last one: batch, token, write, head."""

    _fields_: ClassVar[list] = [("data", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("batch", "token", "write", "head")
    ]

    @classmethod
    def of(cls, x: torch.Tensor | None) -> Tensor:
        """x [B, T, N, H, width] or [B, T, N, H] (``beta``), or without the axis of writes: see `without_writes`."""
        return cls() if x is None else cls(x.data_ptr(), *x.stride()[:4])

    @classmethod
    def without_writes(cls, x: torch.Tensor | None) -> Tensor:
        """x [B, T, heads, width] or [B, T, heads]."""
        if x is None:
            return cls()
        batch, token, head = x.stride()[:3]
        return cls(x.data_ptr(), batch, token, 0, head)


_SIZES = (
    "batch",
    "tokens",
    "writes",
    "heads",
    "groups",
    "key_width",
    "value_width",
    "chunk",
    "chunk_group",
    "kept",
    "threads",
)


class Problem(ctypes.Structure):
    """TpttProblem."""

    _fields_: ClassVar[list] = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [("scale", ctypes.c_float), ("delta", ctypes.c_int32), ("bfloat16", ctypes.c_int32)]
        + [(name, Tensor) for name in ("q", "k", "v", "beta", "g", "o")]
        + [(name, ctypes.c_void_p) for name in ("initial_state", "final_state", "saved")]
        + [(name, Tensor) for name in ("d_o", "d_q", "d_k", "d_v", "d_beta", "d_g")]
        + [(name, ctypes.c_void_p) for name in ("d_final_state", "d_initial_state")]
    )


class Step(ctypes.Structure):
    """TpttStep."""

    _fields_: ClassVar[list] = (
        [
            (name, ctypes.c_int64)
            for name in ("batch", "writes", "heads", "groups", "key_width", "value_width", "threads")
        ]
        + [("scale", ctypes.c_float), ("delta", ctypes.c_int32), ("bfloat16", ctypes.c_int32)]
        + [(name, ctypes.c_void_p) for name in ("q", "k", "v", "beta", "g", "state", "o")]
    )


class Fourier(ctypes.Structure):
    """TpttFourier."""

    _fields_: ClassVar[list] = [(name, ctypes.c_int64) for name in ("rows", "height", "count", "padded", "threads")] + [
        (name, ctypes.c_void_p) for name in ("mapped", "frequencies", "out", "d_out", "d_mapped")
    ]


_MEMORY_SIZES = (
    "batch",
    "states",
    "groups",
    "copies",
    "head_width",
    "map_height",
    "value_width",
    "hidden_width",
    "feature_width",
    "mix_width",
    "threads",
)
_MEMORY_TENSORS = (
    "q",
    "k",
    "v",
    "hidden",
    "softmax",
    "query_map",
    "key_map",
    "write_weight",
    "write_bias",
    "decay_weight",
    "decay_bias",
    "mix_weight",
    "mix_bias",
    "mix_down",
    "frequencies",
    "output_scale",
    "mag_weight",
    "mix_input",
    "state",
    "out",
)


class MemoryStep(ctypes.Structure):
    """TpttMemoryStep."""

    _fields_: ClassVar[list] = (
        [(name, ctypes.c_int64) for name in _MEMORY_SIZES]
        + [(name, ctypes.c_int32) for name in ("delta", "bfloat16", "features")]
        + [(name, ctypes.c_void_p) for name in _MEMORY_TENSORS]
    )
