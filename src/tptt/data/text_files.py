"""Plain text files, read in pieces by their place in the file.

The text builder of `datasets` reads a file from its beginning and holds a whole line, paragraph or document at a time.
Pieces that are found by their place can be read in any order, and a file without line ends takes no more memory.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .documents import KEY_CHARACTERS, LINE_END_WITHIN, PIECE

SUFFIXES = (".txt", ".md", ".rst", ".py")
"""Files that are read as text where a folder holds them."""

_MARKS = (  # UTF-32's little-endian mark begins as UTF-16's does, so that it is looked for first
    (codecs.BOM_UTF8, "utf-8", 1),
    (codecs.BOM_UTF32_LE, "utf-32-le", 4),
    (codecs.BOM_UTF32_BE, "utf-32-be", 4),
    (codecs.BOM_UTF16_LE, "utf-16-le", 2),
    (codecs.BOM_UTF16_BE, "utf-16-be", 2),
)
_JUDGED = 4096  # characters: fewer of a piece from the middle of a file do not tell whether it is text


class NotReadableError(ValueError):
    """A file holds nothing that can be read as documents."""


class NoTextError(NotReadableError):
    """It is in order, but no text: another kind of file, or a table without the column that was asked for."""


class TextWarning(UserWarning):
    """A part of the text that was asked for is passed over."""


@dataclass(frozen=True)
class TextFile:
    """A file of UTF-8, or of UTF-16 or UTF-32 with a byte order mark. Places in it are counted in bytes.

    Args:
        path: where it lies.
        size: bytes of it.
        start: where its text begins, behind a byte order mark.
        encoding: name of the codec, byte order included.
        width: bytes of a code unit.
    """

    path: Path
    size: int
    start: int
    encoding: str
    width: int

    @classmethod
    def of(cls, path: Path) -> TextFile:
        """The file at ``path``; reads its first four bytes.

        Raises:
            OSError: it cannot be opened.
        """
        with path.open("rb") as file:
            beginning = file.read(4)
        size = path.stat().st_size
        for mark, encoding, width in _MARKS:
            if beginning.startswith(mark):
                return cls(path, size, len(mark), encoding, width)
        return cls(path, size, 0, "utf-8", 1)

    @contextmanager
    def opened(self) -> Iterator[io.TextIOWrapper]:
        """The file as text from its beginning; line ends are ``\\n``, what is not of its encoding is replaced."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            yield io.TextIOWrapper(file, encoding=self.encoding, errors="replace")

    def beginning(self) -> str:
        """The first characters, from which its key is made.

        Raises:
            NoTextError: they are no text.
        """
        with self.opened() as file:
            return self._judged(file.read(KEY_CHARACTERS), 0)

    def piece(self, lowest: int, highest: int) -> str:
        """The lines that begin between two places. Pieces that meet leave out nothing and repeat nothing.

        Raises:
            NoTextError: it is no text there.
        """
        with self.path.open("rb") as file:
            start, end = self._line_start(file, lowest), self._line_start(file, highest)
            file.seek(start)
            text = file.read(max(0, end - start)).decode(self.encoding, errors="replace")
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as a file that is opened as text
        return text if len(text) < _JUDGED else self._judged(text, start)

    def pieces(self) -> range:
        """The places where its pieces begin."""
        return range(0, max(1, self.size), PIECE)

    def _judged(self, text: str, start: int) -> str:
        """``text``. Single letters of another encoding are let pass; where they are many it is no text."""
        if text.count("\0") + text.count("\ufffd") <= len(text) / 10:
            return text
        where = f" from byte {start} on" if start else ""
        raise NoTextError(
            f"{self.path} is no text{where}: neither UTF-8 nor, with a byte order mark, UTF-16 or UTF-32; unpack an "
            "archive, convert another encoding"
        )

    def _line_start(self, file: io.BufferedReader, place: int) -> int:
        """The first place from ``place`` on where a line begins, or a character where no line does near it."""
        place -= (place - self.start) % self.width
        if place <= self.start or place >= self.size:
            return min(max(place, self.start), self.size)
        file.seek(place - self.width)
        near = file.read(LINE_END_WITHIN)
        line_end = "\n".encode(self.encoding)
        found = near.find(line_end)
        while found >= 0 and found % self.width:  # across two code units
            found = near.find(line_end, found + 1)
        return place + (self._rest_of_character(near[self.width :]) if found < 0 else found)

    def _rest_of_character(self, data: bytes) -> int:
        """How many bytes at the beginning of ``data`` belong to a character that begins before."""
        if self.width == 1:  # UTF-8 marks them
            marked = [byte & 0xC0 == 0x80 for byte in data[:3]]
            return marked.index(False) if False in marked else len(marked)
        second_half = self.width == 2 and 0xDC <= data[self.encoding == "utf-16-le"] <= 0xDF
        return 2 if second_half else 0
