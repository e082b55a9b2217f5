"""One token through a whole memory branch, in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import structs
from .library import library

FEATURES = ("silu", "sign_split", "fourier")
"""In the order of kernels/abi.h."""


class Parameters(NamedTuple):
    """What a branch has learned, float32 and contiguous, in the order of kernels/abi.h.

    Legend: H query heads, S states, D width of raw queries and keys, M rows of a feature map, K feature width, V value
    width, E width of the layer's input, R width of the mixing gate's input.
    """

    query_map: Tensor | None  # [H, M, D]; None with "silu"
    key_map: Tensor | None  # [S, M, D]; None with "silu"
    write_weight: Tensor | None  # [S, E]; None is zero
    write_bias: Tensor | None  # [S]; None is zero
    decay_weight: Tensor | None  # [S, E]; None is zero
    decay_bias: Tensor | None  # [S]; None: no decay
    mix_weight: Tensor | None  # [H, R]; None is zero
    mix_bias: Tensor | None  # [H]; None is zero
    mix_down: Tensor | None  # [R, E]; None: the mixing gate reads the layer's input itself, R = E
    frequencies: Tensor | None  # [K / 2, M], with "fourier" alone
    output_scale: Tensor  # [H, V]
    mag_weight: Tensor  # []: the Memory-as-Gate weight


def memory_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hidden: Tensor,
    softmax: Tensor,
    state: Tensor,
    parameters: Parameters,
    delta: bool,
    feature_map: str,
) -> Tensor:
    """The mixed output [B, 1, H * V], like ``softmax``; ``state`` [B, S, K, V], float32 and contiguous, is overwritten.

    Args: q [B, 1, H, D], k [B, 1, Hk, D], v [B, 1, Hk, V], hidden [B, 1, E] and softmax [B, 1, H * V] of one dtype,
    float32 or bfloat16; feature_map, one of `FEATURES`. Arguments are taken as valid.
    Raises: RuntimeError where the system has too little memory; ``state`` is then as it was.
    """
    batch, _, heads, width = q.shape
    states, kv_heads = state.shape[1], k.shape[2]
    inputs = [q.contiguous(), k.contiguous(), v.contiguous(), hidden.contiguous(), softmax.contiguous()]
    out = torch.empty_like(inputs[4])
    hidden_width, down = hidden.shape[2], parameters.mix_down
    mix_width = hidden_width if down is None else len(down)
    mix_input = None if down is None else state.new_empty(batch, mix_width)
    library().memory_step(
        structs.MEMORY_STEP.pack(
            batch,
            states,
            heads // states,
            states // kv_heads,
            width,
            width if parameters.key_map is None else parameters.key_map.shape[1],
            v.shape[3],
            hidden_width,
            state.shape[2],
            mix_width,
            torch.get_num_threads(),
            delta,
            q.dtype == torch.bfloat16,
            FEATURES.index(feature_map),
            *[x.data_ptr() for x in inputs],
            *[0 if x is None else x.data_ptr() for x in (*parameters, mix_input)],
            state.data_ptr(),
            out.data_ptr(),
        )
    )
    return out
