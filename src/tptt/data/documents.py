"""Documents of a text, on two sides: those to train on and those held out. They are read when they are asked for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from .held_out import HeldOut

PIECE = 1 << 17
"""Characters, or bytes of a file, of which a longer document is read at a time."""
LINE_END_WITHIN = 1 << 16
"""Characters or bytes from where a piece may end, in which a line end is looked for."""
KEY_CHARACTERS = 1 << 20
"""Characters at the beginning of a document from which its key is made."""


def document_key(text: str) -> int:
    """A number of 64 bits for a document, made from its first 2^20 characters.

    Documents of the same text have the same key on every platform: line ends and white space around it do not count.
    """
    beginning = text[:KEY_CHARACTERS].replace("\r\n", "\n").strip()
    return int.from_bytes(hashlib.blake2b(beginning.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def pieces_of(text: str, lowest: int, highest: int) -> Iterator[str]:
    """The lines of ``text`` that begin between two places, in pieces of about `PIECE` characters."""
    for place in range(lowest, highest, PIECE):
        start, end = _line_start(text, place), _line_start(text, min(place + PIECE, highest))
        if text[start:end].strip():
            yield text[start:end]


def _line_start(text: str, place: int) -> int:
    """The first place from ``place`` on where a line begins, or ``place`` itself where no line does near it."""
    if place <= 0 or place >= len(text):
        return min(max(place, 0), len(text))
    found = text.find("\n", place - 1, place + LINE_END_WITHIN)
    return place if found < 0 else found + 1


class Source(Protocol):
    """Where documents are read from."""

    @property
    def fingerprint(self) -> str:
        """Says what `pieces` gives: sources with the same one hold the same text in the same order."""
        ...

    def documents(self) -> Iterator[tuple[int, int]]:
        """Key and size of each document; sizes are in characters, or in bytes of a text file."""
        ...

    def pieces(self, chosen: HeldOut, held_out: bool, seed: int | None) -> Iterator[str]:
        """The text of one side, in the order of the source, or in one that ``seed`` decides."""
        ...


@dataclass(frozen=True)
class Documents:
    """The documents of one side of a split. Each time it is iterated over they are read anew.

    A document that is longer than about 128 Ki characters comes in pieces, which end where a line does.
    """

    source: Source
    chosen: HeldOut
    held_out: bool
    seed: int | None = None

    def __iter__(self) -> Iterator[str]:
        return self.source.pieces(self.chosen, self.held_out, self.seed)

    def shuffled(self, seed: int) -> Documents:
        """The same documents in an order that ``seed`` decides."""
        return replace(self, seed=seed)

    @cached_property
    def fingerprint(self) -> str:
        """Documents with the same one are the same text in the same order."""
        parts = self.source.fingerprint, self.chosen, self.held_out, self.seed
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class TextSplit:
    """Documents for training and documents held out. `load_text` makes one whose sides never share a document.

    Args:
        train: to train on: a list of texts, or `Documents`.
        held_out: to measure on, likewise.
    """

    train: Sequence[str] | Documents
    held_out: Sequence[str] | Documents


def shuffled(documents: Sequence[str] | Documents, seed: int) -> Sequence[str] | Documents:
    """``documents`` in an order that ``seed`` decides."""
    if isinstance(documents, Documents):
        return documents.shuffled(seed)
    listed = list(documents)
    random.Random(seed).shuffle(listed)
    return listed


def fingerprint(documents: Iterable[str] | Documents) -> str:
    """A name for the text of ``documents`` in their order."""
    if isinstance(documents, Documents):
        return documents.fingerprint
    digest = hashlib.blake2b(digest_size=16)
    for text in documents:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
