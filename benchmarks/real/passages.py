"""Rows of real passages: SQuAD and HotpotQA, with and without distance, and texts that go on from a cut.

``squad/cut``: a SQuAD 2.0 passage, with the one before it in its article, ends right before an answer that stands in
the text at least `FAR` tokens earlier as well and nowhere nearer; the model goes on, and the answer has to come at
once. So it is found in the text, behind a window of `FAR`.
``hotpot/distractors``: a HotpotQA question, its two supporting paragraphs and paragraphs of other questions, in a drawn
order, up to the nominal length. Questions whose answer is "yes" or "no", or stands in no supporting paragraph, are
out.
``skills/squad``: a question and its passage alone.
``skills/last_words``: a HotpotQA paragraph ends right before the last word of a sentence; the word has at least four
letters, stands in the title or an earlier sentence, and not in the begun one (after LAMBADA, arXiv 1606.06031).

Behind a chat template the passage up to its last sentence is the user's message, which ends with the wish to go on, and
the begun sentence begins the assistant's turn. A base without template reads the passage as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .build import Cell, row_of
from .fill import Draft, tokens
from .material import Material
from .rows import Row
from .ruler import Task
from .ruler.questions import Documents

FAR = 64
"""Tokens between an answer and the place where it stood before: the window of the converted models."""
_WISH = "\n\nGo on with this text."
_BEGUN = 3
"""Words of the last sentence that stand before the cut, at least."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n")
_LAST = re.compile(r"(?<= )([A-Za-z]{4,})[.!?]$")

QUESTIONS: dict[tuple[str, str], Task] = {
    ("hotpot", "distractors"): Task("qa", Documents("hotpotqa", near=False, said=True), "any"),
    ("skills", "squad"): Task("qa", Documents("squad", near=False, alone=True), "any"),
}
"""By (table, task), the rows that are made as RULER's."""


@dataclass(frozen=True)
class Cut:
    """A text that ends right before a word or phrase.

    Args:
        context: Its whole sentences.
        begun: The begun sentence, which ends with the last word before the cut.
        answer: What comes next.
        far: Characters between the answer and the end of its nearest place in ``context``.
    """

    context: str
    begun: str
    answer: str
    far: int


def cut(text: str, start: int, answer: str) -> Cut | None:
    """``text`` cut at ``start``, where ``answer`` stands; None where it is not told before the begun sentence.

    It has to stand in the sentences before as a whole word, in the same letters, and not in the begun sentence, of
    which at least `_BEGUN` words come before the cut.
    """
    ends = [match.end() for match in _SENTENCE.finditer(text) if match.end() <= start]
    first = ends[-1] if ends else 0
    begun = text[first:start].rstrip()
    whole = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
    places = [match.end() for match in whole.finditer(text, 0, first)]
    if not places or len(begun.split()) < _BEGUN or whole.search(begun) or not whole.match(text, start):
        return None
    return Cut(text[:first].rstrip(), begun, answer, start - places[-1])


def squad_cuts(material: Material) -> list[list[Cut]]:
    """The cuts of each SQuAD passage that has any; its text begins with the passage before it in its article."""
    found, before = [], {}
    for passage in material.passages:
        head = before.get(passage.article, "")
        before[passage.article] = f"{passage.text}\n"
        told = [(answer, start) for answer, start in passage.answers if len(answer) > 2]
        cuts = [cut(head + passage.text, len(head) + start, answer) for answer, start in told]
        found.append([one for one in cuts if one is not None])
    return [cuts for cuts in found if cuts]


def last_words(material: Material) -> list[list[Cut]]:
    """The cuts of each HotpotQA paragraph that has any, before the last word of a sentence."""
    found = []
    for document in material.hotpotqa_documents:
        ends = [match.start() for match in _SENTENCE.finditer(document)] + [len(document)]
        cuts = []
        for end in ends:
            last = _LAST.search(document, 0, end)
            if last:
                cuts.append(cut(document, last.start(1), last.group(1)))
        found.append([one for one in cuts if one is not None])
    return [cuts for cuts in found if cuts]


def cut_rows(cell: Cell, texts: Sequence[Sequence[Cut]], far: int, tokenizer: Any) -> Iterator[Row]:
    """The rows of a cell, one of each text; the answer has as much room as its tokens and two more.

    Args:
        cell: Which rows; its length is the most that a row takes.
        texts: The cuts of each text.
        far: Tokens that the answer's nearest place is away at least.
        tokenizer: Of the base.

    Raises:
        ValueError: There are not so many.
    """
    made = 0
    for number, cuts in enumerate(cell.draws("texts").shuffled(texts)):
        if made == cell.count:
            return
        seed = cell.seed(number)
        drawn = (_cut_row(cell, seed, one, far, tokenizer) for one in cell.draws(seed).shuffled(cuts))
        row = next((row for row in drawn if row), None)
        if row:
            made += 1
            yield row
    if made < cell.count:
        raise ValueError(f"{cell.task} at {cell.length:,} tokens has {made} {cell.split} rows of {cell.count}")


def _cut_row(cell: Cell, seed: int, found: Cut, far: int, tokenizer: Any) -> Row | None:
    """The row of a cut; None where the answer is told nearer than ``far`` tokens, or the text is too long."""
    between = f"{found.context} {found.begun}"[-found.far :]
    if far and len(_ids(between, tokenizer)) < far:
        return None
    wish = _WISH if tokenizer.chat_template else ""
    draft = Draft(found.context, wish, f" {found.begun}", [found.answer])
    row = row_of(cell, seed, draft, "any", len(_ids(f" {found.answer}", tokenizer)) + 2, tokenizer)
    return row if tokens(row, tokenizer) <= cell.length else None


def _ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
