"""The rows of one chunk: which of them write, which read, and at which position each stands.

A chunk of C tokens writes at W = N * C positions, N for each token. Under the delta rule each position also reads, with
its key, the value that it is about to correct. Queries read in G groups of C rows, each at the last position of its
token.
"""

from typing import NamedTuple

import torch


class ChunkShape(NamedTuple):
    """Sizes of a chunk, and how the rows of its queries meet its positions."""

    tokens: int  # C
    writes: int  # N
    groups: int  # G
    delta: bool

    @property
    def positions(self) -> int:
        """W."""
        return self.tokens * self.writes

    def at_queries(self, x: torch.Tensor) -> torch.Tensor:
        """[M, W, ...] -> [M, G * C, ...]: the rows of `x` at the positions where queries read."""
        x = x[:, self.writes - 1 :: self.writes]
        return x if self.groups == 1 else x.repeat(1, self.groups, *[1] * (x.dim() - 2))

    def add_queries_(self, x: torch.Tensor, of_queries: torch.Tensor) -> torch.Tensor:
        """Add [M, G * C, ...] to x [M, W, ...] in place, at the positions where queries read."""
        here = x[:, self.writes - 1 :: self.writes]
        here += of_queries if self.groups == 1 else of_queries.unflatten(1, (self.groups, self.tokens)).sum(1)
        return x
