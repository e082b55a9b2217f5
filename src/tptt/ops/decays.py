"""Scalar decay factors within a chunk. Each is a product of the decays between two positions, never the exponential of
what is left where two large sums cancel.

Legend: M chunks of W positions.
"""

import math
from typing import NamedTuple

import torch

from .dtypes import wide_dtype

LIGHT = -40.0
"""Down to this sum of a chunk's log decays exp(G_i) and exp(-G_j) are far from the limits of float32, and D is computed
as their product, which is faster than the exponential of each pair."""
_LEAST = {torch.float32: math.log(1e-26), torch.float64: math.log(1e-215)}


def factor(logs: torch.Tensor) -> torch.Tensor:
    """exp(logs), but zero below 1e-26 (1e-215 in float64): products with smaller factors would be subnormal, with which
    processors are very slow (`python -m benchmarks.ops`, "By decay"). Overwrites ``logs``."""
    least = _LEAST[logs.dtype]
    return torch.nn.functional.threshold(logs.clamp_(least - 1, -least).exp(), math.exp(least), 0.0)


class Decays(NamedTuple):
    """G is the running sum of the log decays of a chunk, each position's own included."""

    between: torch.Tensor  # [M, W, W]: D = exp(G_i - G_j) from writer j to reader i >= j, else 0
    since_start: torch.Tensor  # [M, W, 1]: exp(G_i)
    until_end: torch.Tensor  # [M, W, 1]: exp(G_W - G_i)
    carried: torch.Tensor  # [M, 1, 1]: gamma = exp(G_W)

    @classmethod
    def from_logs(cls, log_decay):
        """From log decays [M, W]."""
        dtype, sums = log_decay.dtype, log_decay.to(wide_dtype(log_decay.device)).cumsum(1)
        if log_decay.device.type == "cpu" and sums.dtype == torch.float64 and sums.amin() >= LIGHT:
            since_start = sums.exp().to(dtype).unsqueeze(2)
            between = since_start * sums.neg_().exp_().to(dtype).unsqueeze(1)
        else:
            since_start = factor(sums.to(dtype, copy=True)).unsqueeze(2)  # float64 would be overwritten
            between = factor(_differences(log_decay, sums))
        between.tril_()
        return cls(between, since_start, between[:, -1].unsqueeze(2), since_start[:, -1:])


def _differences(log_decay, sums):
    """G_i - G_j [M, W, W], at and below the diagonal; above it anything.

    After a strong decay the rounding of G is larger than a small difference of two sums, so the part that the dtype
    cannot hold is subtracted too. Where the sums are not wider than the dtype, each pair's own decays are added up,
    which takes longer.
    """
    if sums.dtype == torch.float32:
        lower = log_decay.new_ones(log_decay.shape[1], log_decay.shape[1]).tril_(-1)
        return (log_decay.unsqueeze(2) * lower).cumsum(1)
    rounded = sums.to(log_decay.dtype)
    rest = (sums - rounded).to(log_decay.dtype)
    return (rounded.unsqueeze(2) - rounded.unsqueeze(1)).add_(rest.unsqueeze(2) - rest.unsqueeze(1))
