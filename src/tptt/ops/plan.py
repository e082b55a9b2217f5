"""How the rows of one chunk are laid out: what writes, what reads, and where it stands.

A chunk of C tokens writes at W = N * C positions, N for each token. Under the delta rule each position also reads, with its
key, what it is about to correct. Queries read in G groups of C rows, each at its token's last position.
"""

from typing import NamedTuple

import torch


class Plan(NamedTuple):
    """Sizes of a chunk, and how the rows of its queries meet its positions."""

    tokens: int  # C
    steps: int  # N
    groups: int  # G
    delta: bool

    @property
    def positions(self) -> int:
        """W."""
        return self.tokens * self.steps

    def of_queries(self, x: torch.Tensor) -> torch.Tensor:
        """[N, W, ...] -> [N, G * C, ...]: what `x` says of the positions at which queries read."""
        x = x[:, self.steps - 1 :: self.steps]
        return x if self.groups == 1 else x.repeat(1, self.groups, *[1] * (x.dim() - 2))

    def add_queries_(self, x: torch.Tensor, of_queries: torch.Tensor) -> torch.Tensor:
        """Add [N, G * C, ...] to x [N, W, ...] in place, at the positions at which queries read."""
        here = x[:, self.steps - 1 :: self.steps]
        here += of_queries if self.groups == 1 else of_queries.unflatten(1, (self.groups, self.tokens)).sum(1)
        return x
