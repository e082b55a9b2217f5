"""Tables of documents, read through `datasets`: streamed from a file or the hub, memory-mapped where it saved them."""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .documents import document_key, pieces_of
from .held_out import HeldOut
from .text_files import NoTextError, NotReadableError, TextFile

TABLES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffixes of tables, and the builder of `datasets` that reads them."""

_MIXED = 256  # rows that are held at a time to be shuffled
_SMALL = 4096  # bytes: a larger table is taken to hold something
_READ_AGAIN = 1 << 26  # bytes of a .json file, at most, that is read again to say what is wrong with it


def open_table(path: Path) -> Any:
    """A table's rows as an `IterableDataset`.

    Raises:
        NoTextError: it is empty.
        NotReadableError: it is damaged, as far as that shows at its beginning, or not UTF-8.
    """
    from datasets import load_dataset

    kind, options = TABLES[path.suffix.lower()], {}
    if kind != "parquet":
        file = TextFile.of(path)
        if file.size < _SMALL and not file.beginning().strip():
            raise NoTextError(f"{path} is empty")
        if kind == "json" and file.start:  # datasets 4 takes a byte order mark for JSON
            options["encoding"] = "utf-8-sig"
        if file.width > 1:
            raise NotReadableError(f"{path} is {file.encoding[:6].upper()}: a table is read as UTF-8, convert it")
    try:
        return load_dataset(kind, data_files=glob.escape(str(path)), split="train", streaming=True, **options)
    except Exception as error:  # of many kinds, most of which name no file
        raise _unreadable(path, error) from error


def table_rows(path: Path, column: str, seed: int | None = None) -> Iterator[str]:
    """The cells of ``column`` of a file; in an order that ``seed`` decides, where there is one.

    Raises:
        NoTextError: the table is empty or has no text in such a column.
        NotReadableError: it is damaged; the message names the file and, of .jsonl, the line.
    """
    rows = open_table(path)
    try:
        yield from cells(rows, column, str(path), seed)
    except NotReadableError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def cells(rows: Any, column: str, name: str, seed: int | None = None) -> Iterator[str]:
    """The texts in ``column`` of an `IterableDataset`; rows without one are passed over.

    Args:
        rows: what `datasets` streams or maps.
        column: that holds the text.
        name: of the table, for messages.
        seed: decides in which order the shards are read, and mixes rows that are near each other; None keeps the order.

    Raises:
        NoTextError: there is no such column, or it does not hold text; the message lists those that do.
    """
    if (columns := rows.column_names) is not None:
        if column not in columns:
            raise NoTextError(f"{name} has no column {column!r}; it has {', '.join(columns)}")
        rows = rows.select_columns([column])  # others may be images
    if seed is None:
        return _texts(rows, column, name)
    rng = random.Random(seed)
    return _mixed(_texts(_shards(rows, rng), column, name), rng)


def _shards(rows: Any, rng: random.Random) -> Iterator[dict[str, Any]]:
    """The rows of an `IterableDataset`, shard by shard. Its own ``shuffle`` holds the rows of ten shards."""
    count = rows.num_shards
    for number in rng.sample(range(count), count):
        yield from rows.shard(count, number)


def _texts(rows: Iterable[dict[str, Any]], column: str, name: str) -> Iterator[str]:
    for number, row in enumerate(rows):
        if number == 0 and column not in row:
            raise NoTextError(f"{name} has no column {column!r}; it has {', '.join(row)}")
        cell = row.get(column)
        if isinstance(cell, Mapping | list | bytes):
            raise NoTextError(f"column {column!r} of {name} holds a {type(cell).__name__} in each row, not text")
        if cell is not None and (text := str(cell)).strip():
            yield text


def _mixed(texts: Iterable[str], rng: random.Random) -> Iterator[str]:
    """``texts`` in an order by chance, of which no more than `_MIXED` are held."""
    held: list[str] = []
    for text in texts:
        held.append(text)
        if len(held) == _MIXED:
            place = rng.randrange(_MIXED)
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    rng.shuffle(held)
    yield from held


def row_pieces(text: str, chosen: HeldOut, held_out: bool) -> Iterator[str]:
    """What of a row's text is on one side."""
    return pieces_of(text, *chosen.range_of(document_key(text), len(text), held_out))


def _unreadable(path: Path, error: Exception) -> NotReadableError:
    """Says what is wrong with a table, and in which line of a .jsonl file."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        with TextFile.of(path).opened() as file:
            for number, line in enumerate(file, 1):
                if line.strip() and (wrong := _no_object(line)) is not None:
                    return NotReadableError(f"{path} line {number}: a line of a .jsonl file is one JSON object{wrong}")
    if suffix == ".json" and path.stat().st_size < _READ_AGAIN:
        with TextFile.of(path).opened() as file:
            if "not JSON" not in (_no_object(file.read()) or ""):
                return NoTextError(f"{path} is no table: a .json file holds objects with the same keys")
    cause = str(error.__cause__ or error).strip().splitlines()
    return NotReadableError(f"{path} cannot be read as a {suffix} table: {cause[0] if cause else type(error).__name__}")


def _no_object(text: str) -> str | None:
    """Why ``text`` is no JSON object; None where it is one."""
    try:
        return None if isinstance(json.loads(text), dict) else ""
    except ValueError as wrong:
        return f", this is not JSON: {wrong}"
