"""Words, names and passages of somebody's text: what recall facts are made of."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"(?<![^\W\d_])[^\W\d_]{3,12}(?![^\W\d_])")
_LONG = re.compile(r"[^\W\d_]{13,}")  # scripts that put no space between words come as one long run
_KEPT, _CHARACTERS, _FEWEST = 4096, 2_000_000, 64


@dataclass(frozen=True)
class Lexicon:
    """The most frequent words of a text in lower case, and the text itself to take passages from."""

    words: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, documents: Iterable[str]) -> Lexicon:
        """The words of ``documents``, of which about two million characters are read.

        Raises:
            ValueError: they hold fewer than 64 different words.
        """
        parts: list[str] = []
        size = 0
        for document in documents:
            parts.append(document)
            size += len(document)
            if size >= _CHARACTERS:
                break
        text = "\n".join(parts)[:_CHARACTERS]
        counts = Counter(w.lower() for w in _WORD.findall(text))
        if len(counts) < _FEWEST:
            counts.update(run[i : i + 3].lower() for run in _LONG.findall(text) for i in range(0, len(run) - 2, 3))
        if len(counts) < _FEWEST:
            raise ValueError(
                f"recall facts need a text of {_FEWEST} different words or more; this one has {len(counts)}"
            )
        return cls(tuple(word for word, _ in counts.most_common(_KEPT)), text)

    def word(self, rng: random.Random) -> str:
        """Any word."""
        return rng.choice(self.words)

    def name(self, rng: random.Random) -> str:
        """A word as a name is written."""
        return self.word(rng).capitalize()

    def identifier(self, rng: random.Random) -> str:
        """Two or three words as code joins them."""
        words = [self.word(rng) for _ in range(rng.choice((2, 2, 3)))]
        if rng.random() < 0.7:
            return "_".join(words)
        return words[0] + "".join(w.capitalize() for w in words[1:])

    def passage(self, rng: random.Random, *sizes: int) -> list[str]:
        """Consecutive pieces of the text of about ``sizes`` characters; all but the first begin with white space, where
        the text has any."""
        at = rng.randrange(max(1, len(self.text) - 3 * sum(sizes)))
        at = _next_word(self.text, at)
        pieces = []
        for size in sizes:
            end = _next_space(self.text, at + size)
            pieces.append(self.text[at:end])
            at = end
        return pieces


def _next_space(text: str, at: int) -> int:
    """The first place from ``at`` on where white space follows something else, 24 characters ahead at most."""
    for i in range(at, min(at + 24, len(text))):
        if text[i].isspace() and not text[i - 1].isspace():
            return i
    return min(at, len(text))


def _next_word(text: str, at: int) -> int:
    at = _next_space(text, at)
    while at < len(text) and text[at].isspace():
        at += 1
    return at
