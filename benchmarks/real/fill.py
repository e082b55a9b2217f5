"""How large a haystack is, so that a row fills its nominal length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .rows import Row, prompt_of, special_tokens


@dataclass(frozen=True)
class Draft:
    """The texts of a row whose haystack has some size; the fields are those of `rows.Row`."""

    context: str
    question: str
    answer_prefix: str
    answers: list[str]


class TooLong(ValueError):
    """Not even the smallest haystack fits."""


def tokens(row: Row, tokenizer: Any) -> int:
    """Tokens of a row's prompt and of the room for its answer."""
    ids = tokenizer(prompt_of(row, tokenizer), add_special_tokens=special_tokens(tokenizer))["input_ids"]
    return len(ids) + row.max_new_tokens


def fill(make: Callable[[int], Row], tokenizer: Any, smallest: int, largest: int, guess: int) -> tuple[Row, int]:
    """The row with the largest haystack that fits its length, and the haystack's size.

    Every look tokenises the row, so the next size is taken from the line through the nearest measured ones, as far as
    the largest that fits and the smallest that does not leave room; it ends where these are neighbours or less than a
    hundredth of the length is free.

    Args:
        make: The row of a size; the same size gives the same row, and a larger one is longer but for a few tokens.
        tokenizer: Of the base.
        smallest: Size that a row has at least.
        largest: Size that a row has at most.
        guess: Where to look first.

    Raises:
        TooLong: The smallest does not fit.
    """
    row = make(smallest)
    low, low_tokens = smallest, tokens(row, tokenizer)
    if low_tokens > row.length:
        raise TooLong(f"{row.task} does not fit {row.length:,} tokens: it takes {low_tokens:,}")
    free = row.length // 100
    high, rate = largest + 1, 0.0
    while high - low > 1 and row.length - low_tokens > free:
        size = low + int((row.length - low_tokens) / rate) if rate else guess
        size = min(max(size, low + 1), high - 1)
        found = make(size)
        count = tokens(found, tokenizer)
        rate = max((count - low_tokens) / (size - low), 1e-3)
        if count <= row.length:
            row, low, low_tokens = found, size, count
        else:
            high = size
    return row, low
