"""A development part and a test part of the text that is held out of training.

Arms are compared, and the default is chosen, on the development part. What is reported of the chosen ones is measured
on the test part. The two share no window of `WINDOW` tokens: a text often repeats itself, as the standard library
does, whose docstrings stand in its sources again.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tptt.data import Lexicon
from tptt.train import Corpus

PARTS = ("development", "test")
WINDOW = 32
"""Tokens of the longest piece that both parts may not have in common."""


def windows(ids: torch.Tensor, width: int = WINDOW) -> set[bytes]:
    """Every piece of ``width`` tokens of ``ids`` [n]."""
    return {piece.numpy().tobytes() for piece in ids.long().unfold(0, width, 1)} if len(ids) >= width else set()


def split_tokens(ids: torch.Tensor, width: int = WINDOW) -> tuple[torch.Tensor, torch.Tensor]:
    """The first half of ``ids`` [n], and of the second half what shares no ``width`` tokens with the first."""
    first, second = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    known = windows(first, width)
    while True:  # what is left closes up, and where it does a new piece begins
        shared = (
            [i for i, w in enumerate(second.long().unfold(0, width, 1)) if w.numpy().tobytes() in known]
            if len(second) >= width
            else []
        )
        if not shared:
            return first, second
        kept = torch.ones(len(second), dtype=torch.bool)
        for start in shared:
            kept[start : start + width] = False
        second = second[kept]


def parts_of(corpus: Corpus, width: int = WINDOW) -> dict[str, Corpus]:
    """``corpus`` with either part in the place of its held-out text; training text and words stay.

    Raises:
        ValueError: a part has fewer than 64 different words.
    """
    found = {}
    for name, ids in zip(PARTS, split_tokens(corpus.held_out, width), strict=True):
        words = Lexicon.of([corpus.tokenizer.decode(ids)])
        found[name] = replace(corpus, held_out=ids, held_lexicon=words)
    return found
