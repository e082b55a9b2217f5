"""How the rows of one chunk are laid out: which read, which write, and where they stand.

A chunk of C tokens writes at W = N * C positions, N for each token. Its rows X are what reads: under the delta rule the W
keys (each reads what it is about to correct), then for each of G query groups the C queries, each at its token's last
position: R = W + G * C, or R = G * C without the delta rule.
"""

from typing import NamedTuple

import torch


class Plan(NamedTuple):
    """Sizes of a chunk, and the few ways in which its rows and positions meet."""

    tokens: int  # C
    steps: int  # N
    groups: int  # G
    delta: bool

    @property
    def positions(self) -> int:
        """W."""
        return self.tokens * self.steps

    @property
    def keys(self) -> int:
        """How many of the rows are keys: W or 0."""
        return self.positions if self.delta else 0

    @property
    def rows(self) -> int:
        """R."""
        return self.keys + self.groups * self.tokens

    def of_queries(self, x: torch.Tensor) -> torch.Tensor:
        """[N, W, ...] -> [N, C, ...]: the positions at which queries read."""
        return x[:, self.steps - 1 :: self.steps]

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """[N, R, ...] -> the view [N, G, C, ...] of the query rows."""
        return x[:, self.keys :].unflatten(1, (self.groups, self.tokens))

    def times_(self, rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Multiply rows [N, R, ...] in place by what `factor` [N or 1, W, ...] says of their positions."""
        if self.keys:
            rows[:, : self.keys].mul_(factor)
        self.queries(rows).mul_(self.of_queries(factor).unsqueeze(1))
        return rows

    def by_position(self, x: torch.Tensor) -> torch.Tensor:
        """[N, R, ...] -> [N, W, ...]: the sum over the rows that stand at a position."""
        queries = self.queries(x).sum(1)
        if self.steps == 1:
            return x[:, : self.keys] + queries if self.delta else queries
        total = x[:, : self.keys].clone() if self.delta else x.new_zeros(len(x), self.positions, *x.shape[2:])
        self.of_queries(total).add_(queries)
        return total
