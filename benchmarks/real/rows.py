"""A row of the bench, its prompt, and the files that hold rows.

A prepared folder holds the rows of a base as ``rows/BASE/SPLIT/TABLE-TASK-LENGTH.jsonl``, one row as JSON a line.
Rows belong to a base because its tokenizer measures them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

SPLITS = ("dev", "test")
"""Rows for choosing, and rows for reporting: they share no seed, essay, passage or question."""
JUDGES = ("all", "any")
_NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Row:
    """A prompt with its references.

    Args:
        table: "ruler", "squad", "hotpot", "skills".
        task: Its name in the table.
        length: Nominal tokens, prompt and room for the answer together, in the base's tokenizer.
        seed: With which the row was drawn; unique in its cell (table, task, length).
        split: One of `SPLITS`.
        context: The long part, which a cache may compress before the question is seen. It begins the user's message.
        question: The rest of the user's message.
        answer_prefix: Begins the assistant's turn, "" where nothing does.
        answers: References, at least one.
        judge: "all": the score is the part of the references that is found in the answer; "any": 1 if one is found.
        max_new_tokens: Room for the answer.
    """

    table: str
    task: str
    length: int
    seed: int
    split: str
    context: str
    question: str
    answer_prefix: str
    answers: list[str]
    judge: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        for value in (self.table, self.task):
            if not _NAME.fullmatch(value):
                raise ValueError(f"{value!r} names no table or task: those are small letters, digits and underscores")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is none of {', '.join(SPLITS)}")
        if self.judge not in JUDGES:
            raise ValueError(f"judge {self.judge!r} is none of {', '.join(JUDGES)}")
        if not self.answers or not all(self.answers):
            raise ValueError(f"a row needs references that are not empty, not {self.answers}")

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """(table, task, length, seed, split): what tells the rows of a base apart."""
        return self.table, self.task, self.length, self.seed, self.split


def prompt_of(row: Row, tokenizer: Any) -> str:
    """The text that the model continues: user's message in the tokenizer's chat template, then the answer's prefix.

    A tokenizer without chat template gets message and prefix as plain text. The template writes its own first tokens:
    tokenise with ``add_special_tokens`` of `special_tokens`.
    """
    message = row.context + row.question
    if not tokenizer.chat_template:
        return message + row.answer_prefix
    turns = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) + row.answer_prefix


def special_tokens(tokenizer: Any) -> bool:
    """Whether a prompt is tokenised with the tokenizer's special tokens: only where no chat template wrote them."""
    return not tokenizer.chat_template


def cell_file(folder: Path, base: str, split: str, table: str, task: str, length: int) -> Path:
    """Where the prepared ``folder`` holds the rows of a cell."""
    return folder / "rows" / base / split / f"{table}-{task}-{length}.jsonl"


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write a cell; the file is there only when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, file)


def read_rows(file: Path) -> list[Row]:
    """The rows of a cell.

    Raises:
        FileNotFoundError: The cell is not there; the message names the command that writes it.
        ValueError: A line is no row; the message names file and line.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: `python -m benchmarks.real prepare` writes it")
    names = {field.name for field in fields(Row)}
    rows = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                if set(found) != names:
                    raise ValueError(f"its fields are {', '.join(found)}")
                rows.append(Row(**found))
            except (ValueError, TypeError) as error:
                raise ValueError(f"line {number} of {file} is no row: {error}") from error
    return rows


def cells(folder: Path, base: str, split: str) -> list[tuple[str, str, int]]:
    """(table, task, length) of every prepared cell of a base and split, short ones first."""
    found = []
    for file in (folder / "rows" / base / split).glob("*.jsonl"):
        table, task, length = file.stem.split("-")
        found.append((table, task, int(length)))
    return sorted(found, key=lambda cell: (cell[2], cell[0], cell[1]))
