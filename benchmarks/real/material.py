"""The sources divided into development, test and training parts that share no essay, passage or question."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .draws import Draws
from .rows import SPLITS
from .sources import (
    Passage,
    Question,
    Template,
    read_essays,
    read_hotpotqa,
    read_squad,
    read_templates,
    read_words,
    sentences,
    title_of,
)

RUN = 13
"""Words in a row by which two texts count as the same one: what the field takes to find test data in training text."""
_COMMON = 3
"""A run that more essays hold is a notice that the publisher puts below them."""
_ESSAY_SHARES = {"test": 0.4, "dev": 0.25, "train": 0.35}
_SQUAD_SHARES = {"test": 0.6, "dev": 0.4}
QUESTIONS = {"test": 400, "dev": 300}
"""HotpotQA questions of each split, with their ten paragraphs; the paragraphs of all others are training text."""


@dataclass(frozen=True)
class Material:
    """What the rows of one split are drawn from.

    Args:
        split: "dev" or "test".
        templates: RULER's, by family.
        sentences: Of the split's essays, in their order.
        squad: Answerable questions.
        squad_documents: All passages of the split's articles as documents, each once.
        passages: The same passages with their answers.
        hotpotqa: Questions.
        hotpotqa_documents: Their paragraphs, each once.
        nouns, adjectives, verbs: Lists of words, which both splits draw from.
    """

    split: str
    templates: dict[str, Template]
    sentences: Sequence[str]
    squad: Sequence[Question]
    squad_documents: Sequence[str]
    passages: Sequence[Passage]
    hotpotqa: Sequence[Question]
    hotpotqa_documents: Sequence[str]
    nouns: Sequence[str]
    adjectives: Sequence[str]
    verbs: Sequence[str]


@dataclass(frozen=True)
class Sources:
    """All that was read, divided.

    Args:
        material: Of each split.
        essays: Of "train", "dev" and "test".
        paragraphs: HotpotQA documents of "train", "dev" and "test".
    """

    material: dict[str, Material]
    essays: dict[str, list[str]]
    paragraphs: dict[str, list[str]]


def runs(text: str) -> set[int]:
    """Hashes of every `RUN` words in a row of a text, small letters; valid within one process."""
    words = text.lower().split()
    return {hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1)}


def related(texts: Sequence[str]) -> list[list[int]]:
    """The indices of texts in groups: two that share a rare run of words, even over a third one, are in one group."""
    group = list(range(len(texts)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    holders: dict[int, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        for run in runs(text):
            holders[run].append(i)
    for found in holders.values():
        if 1 < len(found) <= _COMMON:
            for other in found[1:]:
                group[root(other)] = root(found[0])
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(texts)):
        groups[root(i)].append(i)
    return sorted(groups.values())


def shared_out(sizes: Sequence[int], shares: dict[str, float]) -> list[str]:
    """The part of each item: the one that is then furthest from its share of what was given out before."""
    given: Counter[str] = Counter()
    parts = []
    for size in sizes:
        part = min(shares, key=lambda name: (given[name] / shares[name], name))
        given[part] += size
        parts.append(part)
    return parts


def divided_essays(essays: Sequence[str]) -> dict[str, list[str]]:
    """The essays of "train", "dev" and "test", in their order; essays that share text stay together."""
    groups = related(essays)
    parts = shared_out([sum(len(essays[i]) for i in group) for group in groups], _ESSAY_SHARES)
    of = {i: part for group, part in zip(groups, parts, strict=True) for i in group}
    return {part: [essay for i, essay in enumerate(essays) if of[i] == part] for part in _ESSAY_SHARES}


def divided_articles(passages: Sequence[Passage]) -> dict[str, str]:
    """The split of each article of SQuAD."""
    sizes: Counter[str] = Counter()
    for passage in passages:
        sizes[passage.article] += len(passage.text)
    return dict(zip(sizes, shared_out(list(sizes.values()), _SQUAD_SHARES), strict=True))


def divided_questions(questions: Sequence[Question], wanted: dict[str, int]) -> dict[str, list[Question]]:
    """HotpotQA questions of each split; two splits share no title and no `RUN` words in a row of their documents.

    Raises:
        ValueError: There are not so many.
    """
    left = Draws("hotpotqa").shuffled(sorted(questions, key=lambda q: q.group))
    found: dict[str, list[Question]] = {}
    for split, count in wanted.items():
        others = [question for fit in found.values() for question in fit]
        taken, held = set().union(*map(titles, others)), set().union(*map(_runs_of, others))
        fit: list[Question] = []
        for place, question in enumerate(left):
            if len(fit) == count:
                left = left[place:]
                break
            if taken.isdisjoint(titles(question)) and held.isdisjoint(_runs_of(question)):
                fit.append(question)
        if len(fit) < count:
            raise ValueError(f"HotpotQA gives {len(fit)} questions of {count} for {split}")
        found[split] = fit
    return found


def _runs_of(question: Question) -> set[int]:
    return {run for document in question.gold + question.near for run in runs(document)}


def titles(question: Question) -> set[str]:
    """The titles of a HotpotQA question's documents."""
    return {title_of(document) for document in question.gold + question.near}


def once(documents: Iterable[str]) -> list[str]:
    """The documents in their order, each once."""
    return list(dict.fromkeys(documents))


def unshared(documents: Iterable[str], kept: Iterable[str]) -> list[str]:
    """The documents that share no `RUN` words in a row with any of ``kept``."""
    held = {run for text in kept for run in runs(text)}
    return [document for document in documents if held.isdisjoint(runs(document))]


def read_sources(folder: Path, questions: dict[str, int] = QUESTIONS) -> Sources:
    """Read and divide what `wheels.DATA` put into ``folder``.

    Args:
        folder: Of the data.
        questions: How many HotpotQA questions each split gets.
    """
    essays = divided_essays(read_essays(folder / "essays.json"))
    squad, passages = read_squad(folder / "squad.json")
    articles = divided_articles(passages)
    hotpotqa = read_hotpotqa(folder / "hotpotqa.json")
    of_split = divided_questions(hotpotqa, questions)
    paragraphs = {split: once(d for q in of_split[split] for d in q.gold + q.near) for split in SPLITS}
    held = {title_of(d) for split in SPLITS for d in paragraphs[split]} | {a.replace("_", " ") for a in articles}
    free = once(d for q in hotpotqa for d in q.near + q.gold if title_of(d) not in held)
    in_rows = [*paragraphs["dev"], *paragraphs["test"], *(p.text for p in passages)]
    paragraphs["train"] = unshared(free, in_rows)
    essays["train"] = unshared(essays["train"], [*essays["dev"], *essays["test"]])
    templates = read_templates(folder / "constants.py")
    words = {kind: read_words(folder / f"{kind}.txt") for kind in ("nouns", "adjectives", "verbs")}
    material = {
        split: Material(
            split,
            templates,
            [sentence for essay in essays[split] for sentence in sentences(essay)],
            [question for question in squad if articles[question.group] == split],
            once(passage.text for passage in passages if articles[passage.article] == split),
            [passage for passage in passages if articles[passage.article] == split],
            of_split[split],
            paragraphs[split],
            **words,
        )
        for split in SPLITS
    }
    return Sources(material, essays, paragraphs)
