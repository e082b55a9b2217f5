"""RULER's aggregation tasks: which words are the most common of a list, which coded words the most frequent."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

from ..draws import Draws
from ..fill import Draft
from ..material import Material

_EXAMPLE = (20, 40)
"""Different words of the worked example, in short rows and in others."""


def _words(material: Material) -> list[str]:
    return sorted({*material.nouns, *material.adjectives, *material.verbs})


@dataclass(frozen=True)
class CommonWords:
    """A numbered list in which ten words come more often than all others; a worked example stands before it."""

    common: int = 10

    @property
    def smallest(self) -> int:
        """The least number of different words: one that is not common."""
        return self.common + 1

    def largest(self, material: Material) -> int:
        """All words but those of the longer example."""
        return len(_words(material)) - _EXAMPLE[1]

    def draft(self, material: Material, draws: Draws, size: int, length: int) -> Draft:
        """The row's texts with ``size`` different words. The answers are the common ones.

        Args:
            material: Of the split.
            draws: A new stream, the same for every size.
            size: Different words; at most all there are without the example's.
            length: Below 4,096 tokens RULER repeats less: common words 6 times, others once, in the example 3 times
                and once; else 30 times and 3 times, in the example 10 times and 3 times.
        """
        short = length < 4096
        shown, often, seldom = (_EXAMPLE[0], 6, 1) if short else (_EXAMPLE[1], 30, 3)
        template = material.templates["common_words_extraction"]
        head, tail = template.text.split("{context}")
        words = draws.shuffled(_words(material))
        example, words = words[:shown], words[shown : shown + size]
        example_list = self._list(draws, example, 3 if short else 10, 1 if short else 3)
        answer = " ".join(f"{i}. {word}" for i, word in enumerate(example[: self.common], 1))
        worked = f"{head}{example_list}{tail}{template.answer_prefix}{answer}\n"
        context = f"{worked}{head}{self._list(draws, words, often, seldom)}"
        return Draft(context, tail, template.answer_prefix, words[: self.common])

    def _list(self, draws: Draws, words: list[str], often: int, seldom: int) -> str:
        items = draws.shuffled(words[: self.common] * often + words[self.common :] * seldom)
        return " ".join(f"{i}. {word}" for i, word in enumerate(items, 1))


@dataclass(frozen=True)
class FrequentWords:
    """A coded text whose words come as often as a zeta distribution says; the first of them is noise, "..."."""

    letters: int = 6

    @property
    def smallest(self) -> int:
        """The least number of words: the answers then differ in their counts."""
        return 100

    def largest(self, material: Material) -> int:
        """More than any length holds."""
        return 1 << 20

    def draft(self, material: Material, draws: Draws, size: int, length: int) -> Draft:
        """The row's texts with about ``size`` words: the one of rank k comes size / (zeta(2) k^2) times, cut to a whole
        number. The answers have the ranks 2 to 4.

        Args:
            material: Of the split.
            draws: A new stream, the same for every size.
            size: Words before the counts are cut to whole numbers.
            length: Its fiftieth part is the number of different words.
        """
        template = material.templates["freq_words_extraction"]
        head, tail = template.text.split("{context}")
        found: dict[str, None] = {}
        while len(found) < length // 50:
            found[draws.letters(string.ascii_lowercase, self.letters)] = None
        words = ["...", *list(found)[1:]]
        counts = [int(size * 6 / (math.pi**2 * rank**2)) for rank in range(1, len(words) + 1)]
        text = draws.shuffled([word for word, count in zip(words, counts, strict=True) for _ in range(count)])
        return Draft(head + " ".join(text), tail, template.answer_prefix, words[1:4])
