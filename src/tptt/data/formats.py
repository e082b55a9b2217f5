"""Formats in which a text states a fact and comes back to it: a memory is trained on them and tested with them.

A format makes one fact from a `Lexicon`. A fact is stated as ``cue + answer + end``. It is asked for by ``question``,
after which the answer comes again. Words are paired at random, so that nothing but the context tells the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from .lexicon import Lexicon


class Fact(NamedTuple):
    """One fact as text; ``question`` asks for the answer, often by the cue itself."""

    cue: str
    answer: str
    end: str
    question: str


def _again(cue: str, answer: str, end: str) -> Fact:
    return Fact(cue, answer, end, cue)


def _digits(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.choice((4, 5, 5, 6))))


def records(words: Lexicon, rng: random.Random) -> Fact:
    """Key and value behind a sign: multi-query associative recall (arXiv 2312.04927)."""
    sign = rng.choice("@#%>")
    return _again(f"\n{sign} {words.word(rng)}", f" {words.word(rng)}", "")


def passkey(words: Lexicon, rng: random.Random) -> Fact:
    """A number in prose: passkey retrieval (arXiv 2305.16300), several keys at once."""
    cue = f"\nThe pass key of {words.name(rng)} is"
    return _again(cue, f" {_digits(rng)}", ". Remember it.")


_SENTENCES = (
    ("{a} lives in", "{b}", "Where does {a} live?"),
    ("{a} works with", "{b}", "Whom does {a} work with?"),
    ("The capital of {a} is", "{b}", "What is the capital of {a}?"),
    ("{a} was born in", "{b}", "Where was {a} born?"),
    ("The owner of the {a} is", "{b}", "Who owns the {a}?"),
    ("{a} speaks to", "{b}", "Whom does {a} speak to?"),
)


def sentences(words: Lexicon, rng: random.Random) -> Fact:
    """Names in sentences; some are asked by a question that takes the sentence up."""
    sentence, answer, question = rng.choice(_SENTENCES)
    a, b = words.name(rng), words.name(rng)
    stated = sentence.format(a=a)
    asked = f"\n{question.format(a=a)} {stated}" if rng.random() < 0.4 else f"\n{stated}"
    return Fact(f"\n{stated}", f" {answer.format(b=b)}", ".", asked)


_CODE = ("{a} =", "{a} ->", "import {a} as", "#define {a}", "self.{a} =", "type {a} =")


def identifiers(words: Lexicon, rng: random.Random) -> Fact:
    """Names of several words as code binds them to each other."""
    return _again("\n" + rng.choice(_CODE).format(a=words.identifier(rng)), f" {words.identifier(rng)}", "")


def fields(words: Lexicon, rng: random.Random) -> Fact:
    """Quoted keys and values, as in JSON."""
    return _again(f'\n"{words.word(rng)}":', f' "{words.word(rng)}', '",')


def numbers(words: Lexicon, rng: random.Random) -> Fact:
    """How much of something."""
    unit = rng.choice(("metres", "tons", "items", "dollars", "pages"))
    return _again(f"\nThe {words.word(rng)} has", f" {rng.randrange(10, 1000)}", f" {unit}.")


def glossary(words: Lexicon, rng: random.Random) -> Fact:
    """A term and a phrase of the text that stands for it."""
    (phrase,) = words.passage(rng, 16)
    return _again(f"\n* {words.word(rng)} {words.word(rng)}:", " " + " ".join(phrase.split()), ".")


def passages(words: Lexicon, rng: random.Random) -> Fact:
    """A passage of the text that is quoted again and goes on as before."""
    first, then = words.passage(rng, 28, 24)
    return Fact(f"\n{first}", then, "\n", f"\n> {first}")


def strings(words: Lexicon, rng: random.Random) -> Fact:
    """Words without sense in the same order again: induction (arXiv 2209.11895)."""
    row = [words.word(rng) for _ in range(rng.randrange(4, 8))]
    cut = rng.choice((1, 2))
    return _again("\n" + " ".join(row[:cut]), "".join(f" {w}" for w in row[cut:]), "\n")


Format = Callable[[Lexicon, random.Random], Fact]
FORMATS: dict[str, Format] = {
    make.__name__: make
    for make in (records, passkey, sentences, identifiers, fields, numbers, glossary, passages, strings)
}
"""All formats by name."""


def chosen_formats(names: str | tuple[str, ...] | list[str] = "all", without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The formats of ``names``, or all but ``without``.

    Raises:
        ValueError: an unknown name, or none is left.
    """
    listed = tuple(FORMATS) if names == "all" else (names,) if isinstance(names, str) else tuple(names)
    if unknown := [n for n in (*listed, *without) if n not in FORMATS]:
        raise ValueError(f"unknown recall format {', '.join(unknown)}; valid are {', '.join(FORMATS)}")
    if not (left := tuple(n for n in listed if n not in without)):
        raise ValueError("no recall format is left")
    return left
