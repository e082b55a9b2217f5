"""RULER's eight needle tasks: sentences that state a value for a key, hidden in a haystack."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from ..draws import Draws
from ..fill import Draft
from ..material import Material

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_DEPTHS = [round(100 * i / 39) for i in range(40)]
"""Per cent of the haystack at which a needle may stand, evenly spaced."""


@dataclass(frozen=True)
class Needles:
    """What tells the tasks apart, with the values of the paper's appendix.

    Args:
        haystack: "noise" (one sentence again and again), "essays", or "needles" (needles of other keys).
        keys: How many keys have needles.
        values: How many needles each key has.
        queries: How many keys are asked for.
        key_kind: "words" or "uuids".
        value_kind: "numbers" or "uuids".
    """

    haystack: str
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: str = "words"
    value_kind: str = "numbers"

    @property
    def smallest(self) -> int:
        """The least haystack, in its sentences, needles or noises: one place for each needle."""
        return self.keys * self.values

    def largest(self, material: Material) -> int:
        """More than any length holds."""
        return 1 << 20

    def draft(self, material: Material, draws: Draws, size: int, length: int) -> Draft:
        """The row's texts with a haystack of ``size`` sentences, noises or needles. No key and no value comes twice.

        Args:
            material: Of the split.
            draws: A new stream, the same for every size.
            size: Of the haystack.
            length: Not asked.
        """
        seen: set[str] = set()
        keys = [_new(material, draws, self.key_kind, seen) for _ in range(self.keys)]
        values = [[_new(material, draws, self.value_kind, seen) for _ in range(self.values)] for _ in keys]
        asked = draws.sample(range(self.keys), self.queries)
        needles = [self._needle(key, value) for key, found in zip(keys, values, strict=True) for value in found]
        needles = draws.shuffled(needles)
        context = self._context(material, draws, needles, size, seen)
        names = [keys[i] for i in asked]
        query = names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
        head, tail, prefix = self._template(material)
        return Draft(head + context, tail.format(query=query), prefix.format(query=query), _flat(values, asked))

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.value_kind, key=key, value=value)

    def _context(self, material: Material, draws: Draws, needles: list[str], size: int, seen: set[str]) -> str:
        if self.haystack == "essays":
            first = draws.below(len(material.sentences))
            around = [material.sentences[(first + i) % len(material.sentences)] for i in range(size)]
            places = sorted(size * depth // 100 for depth in draws.sample(_DEPTHS, len(needles)))
            return " ".join(_inserted(around, places, needles))
        places = sorted(draws.sample(range(size), len(needles)))
        if self.haystack == "noise":
            around = [_NOISE] * size
        else:
            others = [(_new(material, draws, self.key_kind, seen), self.value_kind) for _ in range(size)]
            around = [self._needle(key, _new(material, draws, kind, seen)) for key, kind in others]
        return "\n".join(_inserted(around, places, needles))

    def _template(self, material: Material) -> tuple[str, str, str]:
        """What stands before the haystack, what after it, and the answer's prefix; in the singular for one value."""
        template, kind = material.templates["niah"], self.value_kind
        texts = [template.text, template.answer_prefix]
        if self.queries * self.values == 1:
            kind = kind[:-1]
            texts = [text.replace("Some", "A").replace("are all", "is").replace("are", "is") for text in texts]
        texts = [text.replace("{type_needle_v}", kind) for text in texts]
        head, tail = texts[0].split("{context}")
        return head, tail, texts[1]


def _flat(values: Sequence[Sequence[str]], asked: Sequence[int]) -> list[str]:
    return [value for i in asked for value in values[i]]


def _inserted(around: list[str], places: list[int], needles: list[str]) -> list[str]:
    """``around`` with each needle before the item of its place; places rise."""
    found: list[str] = []
    start = 0
    for place, needle in zip(places, needles, strict=True):
        found += [*around[start:place], needle]
        start = place
    return found + around[start:]


def _new(material: Material, draws: Draws, kind: str, seen: set[str]) -> str:
    """A key or value that was not drawn before."""
    while (found := _DRAWN[kind](material, draws)) in seen:
        pass
    seen.add(found)
    return found


def _word(material: Material, draws: Draws) -> str:
    return f"{draws.choice(material.adjectives)}-{draws.choice(material.nouns)}"


def _number(material: Material, draws: Draws) -> str:
    return str(draws.between(1_000_000, 9_999_999))


def _uuid(material: Material, draws: Draws) -> str:
    bits = sum(draws.below(2**32) << (32 * i) for i in range(4))
    return str(uuid.UUID(int=bits, version=4))


_DRAWN = {"words": _word, "numbers": _number, "uuids": _uuid}
