"""Scalar decay factors within a chunk, all products of decays between two of its positions: never the exponential of
a difference that could be positive or that is left over from cancelling large sums.

Legend: N chunks of W positions.
"""

import math
from typing import NamedTuple

import torch

_LEAST = {torch.float32: math.log(1e-26), torch.float64: math.log(1e-215)}


def factor(logs: torch.Tensor) -> torch.Tensor:
    """exp(logs), but zero for what is below 1e-26 (1e-215 in float64): products with it would be subnormal, for which
    processors take a hundred times as long. Overwrites ``logs``."""
    return torch.nn.functional.threshold(logs, _LEAST[logs.dtype], -math.inf, inplace=True).exp()


class Decays(NamedTuple):
    """With G the running sum of the log decays of a chunk, a position's own included."""

    between: torch.Tensor  # [N, W, W]: D = exp(G_i - G_j) from writer j to reader i >= j, else 0
    since_start: torch.Tensor  # [N, W, 1]: exp(G_i)
    until_end: torch.Tensor  # [N, W, 1]: exp(G_W - G_i)
    carried: torch.Tensor  # [N, 1, 1]: gamma = exp(G_W)

    @classmethod
    def from_logs(cls, log_decay):
        """From log decays [N, W]."""
        size = log_decay.shape[1]
        lower = log_decay.new_ones(size, size).tril_()
        # Each pair's own decays are added up. The usual difference of two running sums has their rounding, which
        # behind a strong decay is larger than the difference itself.
        between = factor((log_decay.unsqueeze(2) * lower.tril(-1)).cumsum(1)).mul_(lower)
        since_start = factor(log_decay.cumsum(1)).unsqueeze(2)
        return cls(between, since_start, between[:, -1].unsqueeze(2), since_start[:, -1:])
