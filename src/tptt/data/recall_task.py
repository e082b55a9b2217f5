"""Recall rows for any tokenizer: running text states facts in one of many formats and asks for them again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .formats import FORMATS, Fact, chosen_formats
from .lexicon import Lexicon
from .recall_batch import IGNORE, RecallBatch

_TRIES = 50


class _EncodedFact(NamedTuple):
    """A `Fact` as token ids."""

    cue: list[int]
    answer: list[int]
    end: list[int]
    question: list[int]

    @property
    def size(self) -> int:
        return len(self.cue) + len(self.question) + 2 * (len(self.answer) + len(self.end))


class RecallTask:
    """RecallSampler rows of text that state facts in the formats of `tptt.data.FORMATS` and ask for them again.

    The facts of a row have one format, or, in about every second row, all of the formats that there are. Every fact is
    stated once and asked for once, at random places of running text.

    Args:
        tokenizer: any tokenizer of Hugging Face.
        lexicon: gives the words and passages that facts are made of.
        filler: [n] token ids of real text for the room between facts.
        formats: names of `FORMATS`.
        facts: how many facts a row states; fewer where the row is too short for them.

    Raises:
        ValueError: an unknown format.
    """

    def __init__(
        self, tokenizer, lexicon: Lexicon, filler: torch.Tensor, formats: str | Sequence[str] = "all", facts: int = 16
    ) -> None:
        self.tokenizer, self.lexicon, self.filler, self.facts = tokenizer, lexicon, filler, facts
        self.formats = chosen_formats(formats if isinstance(formats, str) else tuple(formats))

    def draw(self, batch: int, length: int, generator: torch.Generator, facts: int | None = None) -> RecallBatch:
        """``batch`` rows of ``length`` tokens, drawn from ``generator`` alone.

        Raises:
            ValueError: fewer than one fact, no fact of any format fits into ``length``, or the filler is shorter than
                a row.
        """
        facts = self.facts if facts is None else facts
        if facts < 1:
            raise ValueError(f"a recall row states one fact or more, not {facts}")
        if len(self.filler) <= length:
            raise ValueError(f"recall rows of {length} tokens need a longer filler than {len(self.filler)} tokens")
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        rows = [self._row(length, facts, rng) for _ in range(batch)]
        return RecallBatch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def _row(self, length: int, facts: int, rng: random.Random):
        drawn = self._facts_of_row(length, facts, rng)
        room = length - sum(fact.size for fact in drawn)
        order = list(range(len(drawn))) * 2
        rng.shuffle(order)  # where a fact comes first it is stated, where it comes again it is asked for
        cuts = sorted(rng.randrange(room + 1) for _ in order)
        start = rng.randrange(len(self.filler) - length)
        text = self.filler[start : start + room].tolist()
        ids: list[int] = []
        answers, distance, number = [IGNORE] * length, [0] * length, [-1] * length
        stated: dict[int, int] = {}
        done = 0
        for which, cut in zip(order, cuts, strict=True):
            fact = drawn[which]
            ids += text[done:cut]
            done = cut
            ids += fact.question if which in stated else fact.cue
            at, size = len(ids), len(fact.answer)
            if which in stated:
                answers[at : at + size] = fact.answer
                distance[at : at + size] = [at - stated[which]] * size
                number[at : at + size] = [which] * size
            else:
                stated[which] = at
            ids += fact.answer + fact.end
        return tuple(map(torch.tensor, (ids + text[done:], answers, distance, number)))

    def _facts_of_row(self, length: int, facts: int, rng: random.Random) -> list[_EncodedFact]:
        """Facts that fit into a row together and cannot be taken for each other."""
        mixed = len(self.formats) > 1 and rng.random() < 0.5
        name = rng.choice(self.formats)
        found = [] if mixed else self._fitting((name,), length, facts, rng)
        found = found or self._fitting(self.formats, length, facts, rng)  # short rows do not hold every format
        if not found:
            raise ValueError(f"no fact of {', '.join(self.formats)} fits into a recall row of {length} tokens")
        return found

    def _fitting(self, formats: tuple[str, ...], length: int, facts: int, rng: random.Random) -> list[_EncodedFact]:
        found: list[_EncodedFact] = []
        size = 0
        for _ in range(_TRIES):
            wanted = facts - len(found)
            if not wanted:
                break
            drawn = [FORMATS[rng.choice(formats)](self.lexicon, rng) for _ in range(wanted)]
            for fact in self._encoded(drawn):
                if any(_alike(fact, other) for other in found):
                    continue
                if size + fact.size > length:
                    if found:
                        return found
                    break
                found.append(fact)
                size += fact.size
        return found

    def _encoded(self, facts: list[Fact]) -> list[_EncodedFact]:
        """Those of ``facts`` whose answer has the same tokens where it is stated and where it is asked."""
        texts = [(f.cue, f.cue + f.answer, f.cue + f.answer + f.end, f.question, f.question + f.answer) for f in facts]
        ids = self.tokenizer([t for group in texts for t in group], add_special_tokens=False)["input_ids"]
        encoded = []
        for i in range(0, len(ids), 5):
            cue, stated, whole, question, asked = ids[i : i + 5]
            start, again = _common(cue, stated), _common(question, asked)
            answer = stated[start:]
            if answer and asked[again:] == answer and whole[: len(stated)] == stated:
                encoded.append(_EncodedFact(stated[:start], answer, whole[len(stated) :], asked[:again]))
        return encoded


def _alike(a: _EncodedFact, b: _EncodedFact) -> bool:
    """Whether the cue of one also begins what the other states, so that it has two answers."""
    return any(x.cue == (y.cue + y.answer)[: len(x.cue)] for x, y in ((a, b), (b, a)))


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest beginning that both have."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
