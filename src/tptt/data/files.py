"""The documents of one file: text, or a table's column."""

from __future__ import annotations

import codecs
import glob
import json
from pathlib import Path

TABLES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
SUFFIXES = {".txt", ".md", ".rst", ".py", *TABLES}

_LINES = 200  # of a document, where a text file does not say
_SMALL = 4096  # bytes: what is larger is taken to hold something
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte order marks, in this order: UTF-32's begins as UTF-16's does."""


class NotReadableError(ValueError):
    """A file holds nothing that can be read as documents."""


class NoTextError(NotReadableError):
    """It is in order, but no text: another kind of file, or a table without the column that was asked for."""


class TextWarning(UserWarning):
    """A part of the text that was asked for is passed over."""


def read_file(path: Path, column: str) -> list[str]:
    """Documents of one file.

    Raises:
        NotReadableError: it holds none that can be read; the message names it and says why.
    """
    return read_table(path, column) if path.suffix.lower() in TABLES else read_text(path)


def read_text(path: Path) -> list[str]:
    """A document per 200 lines, of UTF-8, or of UTF-16 or UTF-32 with a byte order mark."""
    lines = decoded(path).splitlines(keepends=True)
    return ["".join(lines[i : i + _LINES]) for i in range(0, len(lines), _LINES)]


def decoded(path: Path) -> str:
    """A file's text. Single letters of another encoding are replaced; where they are many it is no text."""
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    text = data.decode(encoding, errors="replace")
    if text.count("\0") + text.count("\ufffd") > len(text) / 10:
        raise NoTextError(
            f"{path} is no text: neither UTF-8 nor, with a byte order mark, UTF-16 or UTF-32; unpack an archive, convert "
            "another encoding"
        )
    # as a file that is opened as text
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_table(path: Path, column: str) -> list[str]:
    """The cells of ``column``."""
    from datasets import load_dataset

    kind = TABLES[path.suffix.lower()]
    if path.stat().st_size < _SMALL and kind != "parquet" and not decoded(path).strip():
        raise NoTextError(f"{path} is empty")
    try:
        table = load_dataset(kind, data_files=glob.escape(str(path)))["train"]
    except Exception as error:  # of many kinds, most of which name no file
        raise _unreadable(path, error) from error
    return text_column(table, column, str(path))


def text_column(table, column: str, name: str) -> list[str]:
    """The cells of a table of ``datasets``; an empty one is no text."""
    if column not in table.column_names:
        raise NoTextError(f"{name} has no column {column!r}; it has {', '.join(table.column_names)}")
    return [str(x) for x in table[column] if x is not None]


def _unreadable(path: Path, error: Exception) -> NotReadableError:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        for number, line in enumerate(decoded(path).splitlines(), 1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return NotReadableError(f"{path} line {number}: a line of a .jsonl file is one JSON object")
            except ValueError as wrong:
                return NotReadableError(
                    f"{path} line {number}: a line of a .jsonl file is one JSON object, this is not JSON: {wrong}"
                )
    if suffix == ".json":
        try:
            json.loads(decoded(path))
        except ValueError:
            pass
        else:
            return NoTextError(f"{path} is no table: a .json file holds objects with the same keys")
    cause = str(error.__cause__ or error).strip().splitlines()
    return NotReadableError(f"{path} cannot be read as a {suffix} table: {cause[0] if cause else type(error).__name__}")
