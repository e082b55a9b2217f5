"""What rows and texts are made of, read from the files that `wheels.DATA` names."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATED = re.compile(
    rf"(?<=[.!?)\"\]\n])(?:{_MONTHS}) (?:19|20)\d\d(?:, rev\. (?:{_MONTHS}) (?:19|20)\d\d)?(?=[^ ,.;:)]|  \n)"
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z])")


@dataclass(frozen=True)
class Template:
    """A RULER task's words.

    Args:
        text: The user's message, with ``{context}`` and mostly ``{query}``.
        answer_prefix: Begins the assistant's turn.
        tokens_to_generate: Room for the answer.
    """

    text: str
    answer_prefix: str
    tokens_to_generate: int


@dataclass(frozen=True)
class Question:
    """A question that documents answer.

    Args:
        question: The question.
        answers: References, each once.
        gold: The documents that answer it.
        near: Other documents on the same subject: of its article, or picked by retrieval.
        group: Names what must not be divided: the article, or the question itself.
    """

    question: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    near: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Passage:
    """A SQuAD passage.

    Args:
        text: All of it.
        article: Title of its article.
        answers: (text, place of its first character), each once, of the questions that the passage answers.
    """

    text: str
    article: str
    answers: tuple[tuple[str, int], ...]


def read_templates(file: Path) -> dict[str, Template]:
    """RULER's templates by family, from its ``constants.py``, which is read and not run.

    Raises:
        ValueError: The file assigns no table ``TASKS`` of the expected form.
    """
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["TASKS"]:
            table = ast.literal_eval(node.value)
            return {
                name: Template(task["template"], task["answer_prefix"], int(task["tokens_to_generate"]))
                for name, task in table.items()
            }
    raise ValueError(f"{file} assigns no table TASKS: it is not RULER's constants.py")


def read_essays(file: Path) -> list[str]:
    """The essays, each beginning with its month and year.

    The file joins them without a mark. A month with its year that begins a line, or follows the end of a sentence
    without a space, begins an essay; what is before the first such place goes with it.
    """
    text = json.loads(file.read_text(encoding="utf-8"))["text"]
    starts = [0, *(match.start() for match in _DATED.finditer(text) if match.start())]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def sentences(text: str) -> list[str]:
    """The sentences of a text; white space within becomes single spaces.

    A sentence ends at a full stop, an exclamation or a question mark before a capital letter. RULER splits with a
    trained splitter of nltk; where the two differ, a needle stands in another place.
    """
    text = " ".join(text.split())
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    pieces = [text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def read_words(file: Path) -> list[str]:
    """A list of words, one a line, each once, sorted."""
    return sorted({line.strip() for line in file.read_text(encoding="utf-8").splitlines()} - {""})


def read_squad(file: Path) -> tuple[list[Question], list[Passage]]:
    """The answerable questions of SQuAD 2.0 and all its passages."""
    questions, passages = [], []
    for article in _json(file)["data"]:
        texts = list(dict.fromkeys(paragraph["context"] for paragraph in article["paragraphs"]))
        for paragraph in article["paragraphs"]:
            text, found = paragraph["context"], {}
            for item in paragraph["qas"]:
                if item["is_impossible"]:
                    continue
                answers = tuple(dict.fromkeys(answer["text"] for answer in item["answers"]))
                near = tuple(other for other in texts if other != text)
                questions.append(Question(item["question"].strip(), answers, (text,), near, article["title"]))
                found.update({(answer["text"], answer["answer_start"]): None for answer in item["answers"]})
            passages.append(Passage(text, article["title"], tuple(found)))
    return questions, passages


def read_hotpotqa(file: Path) -> list[Question]:
    """The questions of HotpotQA; a document is a title, a line end and a paragraph."""
    questions = []
    for item in _json(file):
        supporting = {title for title, _ in item["supporting_facts"]}
        documents = {title: f"{title}\n{''.join(parts)}" for title, parts in item["context"]}
        gold = tuple(text for title, text in documents.items() if title in supporting)
        near = tuple(text for title, text in documents.items() if title not in supporting)
        questions.append(Question(item["question"].strip(), (item["answer"],), gold, near, item["_id"]))
    return questions


def title_of(document: str) -> str:
    """The title of a HotpotQA document."""
    return document.partition("\n")[0]


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
