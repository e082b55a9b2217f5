"""The rows of a cell: a task's drafts, each filled to its nominal length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .draws import Draws
from .fill import Draft, TooLong, fill
from .material import Material
from .rows import SPLITS, Row
from .ruler import Task
from .ruler.questions import Documents

DEV_SEEDS = 100_000
"""The first seed of development rows; test rows have smaller ones."""


@dataclass(frozen=True)
class Cell:
    """Rows of one table, task and length.

    Args:
        table, task, length, split: As of `rows.Row`.
        count: How many rows.
    """

    table: str
    task: str
    length: int
    split: str
    count: int

    def seed(self, number: int) -> int:
        """The seed of the row of that number."""
        return number + DEV_SEEDS * SPLITS[::-1].index(self.split)

    def draws(self, *key: object) -> Draws:
        """A stream of draws of this cell."""
        return Draws(self.table, self.task, self.length, self.split, *key)


def filled_rows(cell: Cell, task: Task, material: Material, tokenizer: Any) -> Iterator[Row]:
    """The rows of a cell, each as long as its length allows; more rows begin with the fewer.

    Raises:
        ValueError: No row fits the length, the data does not fill it, or there are not so many questions.
    """
    questions = (
        cell.draws("questions").shuffled(task.maker.questions(material)) if isinstance(task.maker, Documents) else None
    )
    guess, number, made = 0, 0, 0
    while made < cell.count:
        if questions is not None and number == len(questions):
            raise ValueError(f"{cell.task} at {cell.length:,} tokens has {made} {cell.split} rows of {cell.count}")
        asked = {} if questions is None else {"asked": questions[number]}
        seed = cell.seed(number)
        number += 1

        def make(size: int, seed: int = seed, asked: dict[str, Any] = asked) -> Row:
            draft = task.maker.draft(material, cell.draws(seed), size, cell.length, **asked)
            return row_of(cell, seed, draft, task.judge, material.templates[task.family].tokens_to_generate, tokenizer)

        smallest, largest = task.maker.smallest, task.maker.largest(material)
        try:
            row, guess = fill(make, tokenizer, smallest, largest, guess or cell.length // 8)
        except TooLong:
            if questions is None:
                raise
            continue
        if guess == largest > smallest:
            raise ValueError(f"the data of {cell.task} does not fill {cell.length:,} tokens")
        made += 1
        yield row


def row_of(cell: Cell, seed: int, draft: Draft, judge: str, max_new_tokens: int, tokenizer: Any) -> Row:
    """A row of a draft. Behind a chat template's line end the answer's prefix begins without its space."""
    prefix = draft.answer_prefix.lstrip() if tokenizer.chat_template else draft.answer_prefix
    return Row(
        cell.table,
        cell.task,
        cell.length,
        seed,
        cell.split,
        draft.context,
        draft.question,
        prefix,
        draft.answers,
        judge,
        max_new_tokens,
    )
