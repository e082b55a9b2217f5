"""Where the documents of a text lie: files of this machine, or a data set that `datasets` opens."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tptt.progress import report_progress

from .documents import PIECE, document_key
from .held_out import HeldOut
from .tables import TABLES, cells, row_pieces, table_rows
from .text_files import NoTextError, TextFile, TextWarning

_WHOLE = 1 << 30  # bytes of files, all of which are read to tell their contents from others
_BLOCK = 1 << 20


@dataclass
class LocalFiles:
    """Text files and tables. A text file is a document, and so is each row of a table.

    Args:
        files: in the order in which they are read.
        column: of a table that holds the text.
        strict: whether a file that is no text is an error; else it is passed over with a `TextWarning`.
    """

    files: Sequence[Path]
    column: str = "text"
    strict: bool = True
    _keys: dict[Path, int | None] = field(default_factory=dict, repr=False)
    _passed_over: set[Path] = field(default_factory=set, repr=False)

    def documents(self) -> Iterator[tuple[int, int]]:
        for path in self.files:
            if is_table(path):
                yield from ((document_key(text), len(text)) for text in self._rows(path))
            elif (key := self._key(path)) is not None:
                yield key, path.stat().st_size

    def pieces(self, chosen: HeldOut, held_out: bool, seed: int | None) -> Iterator[str]:
        parts = [
            (path, place) for path in self.files for place in ((0,) if is_table(path) else TextFile.of(path).pieces())
        ]
        if seed is not None:
            random.Random(seed).shuffle(parts)
        for path, place in parts:
            if is_table(path):
                for text in self._rows(path, seed):
                    yield from row_pieces(text, chosen, held_out)
            else:
                yield from self._piece(path, place, chosen, held_out)

    def _piece(self, path: Path, place: int, chosen: HeldOut, held_out: bool) -> Iterator[str]:
        key = self._key(path)
        if key is None:
            return
        file = TextFile.of(path)
        lowest, highest = chosen.range_of(key, file.size, held_out)
        lowest, highest = max(lowest, place), min(highest, place + PIECE)
        if lowest < highest:
            try:
                text = file.piece(lowest, highest)
            except NoTextError as error:
                self._pass_over(path, error)
                return
            if text.strip():
                yield text

    def _rows(self, path: Path, seed: int | None = None) -> Iterator[str]:
        try:
            yield from table_rows(path, self.column, seed)
        except NoTextError as error:
            self._pass_over(path, error)

    def _key(self, path: Path) -> int | None:
        """The key of a text file; None where it holds no text."""
        if path not in self._keys:
            self._keys[path] = None
            try:
                if (beginning := TextFile.of(path).beginning()).strip():
                    self._keys[path] = document_key(beginning)
            except NoTextError as error:
                self._pass_over(path, error)
        return self._keys[path]

    def _pass_over(self, path: Path, error: NoTextError) -> None:
        if self.strict:
            raise error
        if path not in self._passed_over:
            self._passed_over.add(path)
            warnings.warn(f"passed over: {error}", TextWarning, stacklevel=2)

    @cached_property
    def fingerprint(self) -> str:
        """Made of what the files hold, or, of more than 1 GiB, of their sizes, ends and times of change."""
        return f"{content_hash(self.files)} {self.column}"


@dataclass
class Rows:
    """The rows of a data set, each of them a document.

    Args:
        rows: an `IterableDataset`.
        column: that holds the text.
        name: for messages.
        fingerprint: of the data set.
    """

    rows: Any
    column: str
    name: str
    fingerprint: str

    def documents(self) -> Iterator[tuple[int, int]]:
        return ((document_key(text), len(text)) for text in cells(self.rows, self.column, self.name))

    def pieces(self, chosen: HeldOut, held_out: bool, seed: int | None) -> Iterator[str]:
        for text in cells(self.rows, self.column, self.name, seed):
            yield from row_pieces(text, chosen, held_out)


def is_table(path: Path) -> bool:
    """Whether a file is read as a table."""
    return path.suffix.lower() in TABLES


def content_hash(files: Sequence[Path]) -> str:
    """A name for what ``files`` hold, in their order. Where they lie does not matter.

    Of more than 1 GiB in all the first and the last MiB of each file is read, and when it was changed counts as well.
    """
    sizes = [path.stat().st_size for path in files]
    whole = sum(sizes) <= _WHOLE
    digest = hashlib.blake2b(digest_size=16)
    with report_progress("comparing the text with what was read before", len(files), "files") as progress:
        for path, size in zip(files, sizes, strict=True):
            digest.update(f"{path.suffix.lower()} {size}\n".encode())
            with path.open("rb") as file:
                if whole:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                else:
                    digest.update(f"{path.stat().st_mtime_ns}\n".encode() + file.read(_BLOCK))
                    file.seek(max(0, size - _BLOCK))
                    digest.update(file.read(_BLOCK))
            progress.advance()
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """`content_hash` of all files in a folder."""
    inside = ((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*"))
    return content_hash([path for _, path in sorted(inside) if path.is_file()])
