"""Random draws that are the same on every platform and in every version of Python."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of draws that its key alone decides.

    Python promises the same sequence of `random.Random.random` for a seed in every version, and promises it of none
    of the methods built on it; so these are built on it here.

    Args:
        key: What is drawn for, as split, task, length and seed.
    """

    def __init__(self, *key: object) -> None:
        text = "\0".join(str(part) for part in key)
        self._random = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))

    def below(self, end: int) -> int:
        """A whole number from 0 to ``end`` - 1; ``end`` is at most 2^32, far below the 2^53 of a draw."""
        return int(self._random.random() * end)

    def between(self, first: int, last: int) -> int:
        """A whole number from ``first`` to ``last``, both included."""
        return first + self.below(last - first + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a drawn order (Fisher and Yates)."""
        return self.sample(items, len(items))

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different places of ``items``, in a drawn order; a larger count begins with the smaller one's.

        Raises:
            ValueError: There are fewer items.
        """
        if count > len(items):
            raise ValueError(f"{count} of {len(items)} items cannot be drawn")
        left = list(items)
        for place in range(count):
            other = place + self.below(len(left) - place)
            left[place], left[other] = left[other], left[place]
        return left[:count]

    def letters(self, alphabet: str, count: int) -> str:
        """A string of ``count`` letters."""
        return "".join(self.choice(alphabet) for _ in range(count))
