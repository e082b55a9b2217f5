"""Which documents of a text are held out. It depends on what they say and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ONE_IN = 20
"""One document in 20 is held out."""
FEW = 1000
"""As many documents are looked at; where there are no more, their sizes count as well."""

_KEYS = 1 << 64
_END = 16 << 20  # of a single document, the most that is held out
_GAP = 64 << 10


class TooLittleTextError(ValueError):
    """There is no text, or none of it can be held out."""


@dataclass(frozen=True)
class HeldOut:
    """Which documents are held out, by their keys (`document_key`).

    Args:
        keys: those that are; None is the lowest twentieth of all possible keys.
        cut: a document whose end is held out and whose beginning is trained on, because there is hardly any other.
    """

    keys: tuple[int, ...] | None = None
    cut: int | None = None

    def range_of(self, key: int, size: int, held_out: bool) -> tuple[int, int]:
        """The part of a document of ``size`` that is on one side, from where to where: all of it, nothing, or, of the
        document that is cut, its beginning or its end. Between these a hundredth of it is left out, 64 Ki at most.
        """
        if key == self.cut:
            end = size - max(1, min(size // 10, _END))
            return (end, size) if held_out else (0, max(1, end - min(size // 100, _GAP)))
        inside = key < _KEYS // ONE_IN if self.keys is None else key in self.keys
        return (0, size) if inside == held_out else (0, 0)


def choose(documents: Iterable[tuple[int, int]]) -> HeldOut:
    """Which of ``documents`` (key and size of each) are held out.

    Where there are more than 1,000 documents, those are held out whose keys are among the lowest twentieth of all
    possible keys, and no more than 1,001 documents are looked at. Where there are fewer, the documents with the lowest
    keys are held out until they are a twentieth of the text; together they are never more than half of it. Where that
    finds less than a twentieth, the first document that is enough alone is held out; where there is none, one document
    is more than half of the text, and its end is held out.

    Raises:
        TooLittleTextError: there are no documents, or the only one has a single character.
    """
    sizes: dict[int, int] = {}  # documents that say the same count as one
    for key, size in documents:
        sizes[key] = size
        if len(sizes) > FEW:
            return HeldOut()
    total = sum(sizes.values())
    if not total:
        raise TooLittleTextError("there is no text")
    keys: list[int] = []
    held = 0
    for key in sorted(sizes):
        if held * ONE_IN < total and 2 * (held + sizes[key]) <= total:
            keys.append(key)
            held += sizes[key]
    if held * ONE_IN >= total:
        return HeldOut(tuple(keys))
    for key in sorted(sizes):  # small ones came first, and left no room for one that is enough alone
        if total <= sizes[key] * ONE_IN and 2 * sizes[key] <= total:
            return HeldOut((key,))
    if total < 2:
        raise TooLittleTextError("of one character nothing can be held out")
    return HeldOut((), max(sizes, key=lambda key: (sizes[key], key)))
