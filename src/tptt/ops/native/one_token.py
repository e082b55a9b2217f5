"""One token through a whole memory branch, in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tptt.ops.native import structs

from .library import library

FEATURES = ("silu", "sign_split", "fourier")
"""In the order of kernels/abi.h."""


class Parameters(NamedTuple):
    """What a branch has learned, float32 and contiguous, in the order of kernels/abi.h: feature maps [H, M, D] and [S, M, D]
    (None with "silu"), weights [., E] and biases [.] of the gates for writing [S], decay [S] and mixing [H] (None: zero, no
    decay), what the last one makes of the input [R, E] (None: it reads the input), frequencies [K / 2, M] ("fourier" alone), scale [H, V], and the Memory-as-Gate weight []."""

    query_map: Tensor | None
    key_map: Tensor | None
    write_weight: Tensor | None
    write_bias: Tensor | None
    decay_weight: Tensor | None
    decay_bias: Tensor | None
    mix_weight: Tensor | None
    mix_bias: Tensor | None
    mix_down: Tensor | None
    frequencies: Tensor | None
    output_scale: Tensor
    mag_weight: Tensor


def memory_step(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, softmax: Tensor, state: Tensor, parameters: Parameters, delta: bool,
    feature_map: str,
) -> Tensor:  # fmt: skip
    """The mixed output [B, 1, H * V], like ``softmax``; ``state`` [B, S, K, V], float32 and contiguous, is overwritten.

    Args: q [B, 1, H, D], k [B, 1, Hk, D], v [B, 1, Hk, V], hidden [B, 1, E] and softmax [B, 1, H * V] of one dtype, float32
    or bfloat16; feature_map, one of `FEATURES`. Arguments are taken as valid.
    """
    batch, _, heads, width = q.shape
    states, kv_heads = state.shape[1], k.shape[2]
    inputs = [q.contiguous(), k.contiguous(), v.contiguous(), hidden.contiguous(), softmax.contiguous()]
    out = torch.empty_like(inputs[4])
    height = width if parameters.key_map is None else parameters.key_map.shape[1]
    down = parameters.mix_down
    mix_input = None if down is None else state.new_empty(batch, len(down))
    library().memory_step(
        structs.MemoryStep(
            batch, states, heads // states, states // kv_heads, width, height, v.shape[3], hidden.shape[2],
            state.shape[2], hidden.shape[2] if down is None else len(down), torch.get_num_threads(), delta, q.dtype == torch.bfloat16, FEATURES.index(feature_map),
            *[x.data_ptr() for x in inputs], *[x if x is None else x.data_ptr() for x in (*parameters, mix_input)],
            state.data_ptr(), out.data_ptr(),
        )
    )  # fmt: skip
    return out
