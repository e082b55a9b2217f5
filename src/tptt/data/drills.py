"""Recall rows in many formats for any tokenizer: facts stated in running text and asked for again later.

Legend: B rows, T tokens of a row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .formats import FORMATS, Fact, chosen_formats
from .lexicon import Lexicon
from .recall import IGNORE, RecallBatch

_TRIES = 50


class _Piece(NamedTuple):
    """Token ids of one fact."""

    cue: list[int]
    answer: list[int]
    end: list[int]
    question: list[int]

    @property
    def size(self) -> int:
        return len(self.cue) + len(self.question) + 2 * (len(self.answer) + len(self.end))


class DrillRows:
    """Draws recall rows whose facts come in the formats of `tptt.data.FORMATS`.

    A row has facts of one format, or, every second row where there are several, of all of them. Every fact is stated
    once and asked once, at random places of running text.

    Args:
        tokenizer: any tokenizer of Hugging Face.
        lexicon: where words and passages come from.
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
            ValueError: fewer than one fact, no fact of any format fits into ``length``, or the filler is shorter than a row.
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
        pieces = self._pieces(length, facts, rng)
        room = length - sum(p.size for p in pieces)
        places = list(range(len(pieces))) * 2
        rng.shuffle(places)  # the earlier place of a fact states it, the later one asks
        cuts = sorted(rng.randrange(room + 1) for _ in places)
        start = rng.randrange(len(self.filler) - length)
        text = self.filler[start : start + room].tolist()
        ids: list[int] = []
        answers, distance, number = [IGNORE] * length, [0] * length, [-1] * length
        stated: dict[int, int] = {}
        done = 0
        for fact, cut in zip(places, cuts, strict=True):
            piece = pieces[fact]
            ids += text[done:cut]
            done = cut
            ids += piece.question if fact in stated else piece.cue
            at, size = len(ids), len(piece.answer)
            if fact in stated:
                answers[at : at + size] = piece.answer
                distance[at : at + size] = [at - stated[fact]] * size
                number[at : at + size] = [fact] * size
            else:
                stated[fact] = at
            ids += piece.answer + piece.end
        return tuple(map(torch.tensor, (ids + text[done:], answers, distance, number)))

    def _pieces(self, length: int, facts: int, rng: random.Random) -> list[_Piece]:
        """Facts that fit into a row together and cannot be taken for each other."""
        mixed = len(self.formats) > 1 and rng.random() < 0.5
        name = rng.choice(self.formats)
        found = [] if mixed else self._fitting((name,), length, facts, rng)
        found = found or self._fitting(self.formats, length, facts, rng)  # short rows do not hold every format
        if not found:
            raise ValueError(f"no fact of {', '.join(self.formats)} fits into a recall row of {length} tokens")
        return found

    def _fitting(self, formats: tuple[str, ...], length: int, facts: int, rng: random.Random) -> list[_Piece]:
        found: list[_Piece] = []
        size = 0
        for _ in range(_TRIES):
            wanted = facts - len(found)
            if not wanted:
                break
            drawn = [FORMATS[rng.choice(formats)](self.lexicon, rng) for _ in range(wanted)]
            for piece in self._encoded(drawn):
                if any(_alike(piece, other) for other in found):
                    continue
                if size + piece.size > length:
                    if found:
                        return found
                    break
                found.append(piece)
                size += piece.size
        return found

    def _encoded(self, facts: list[Fact]) -> list[_Piece]:
        """Those of ``facts`` whose answer has the same tokens where it is stated and where it is asked."""
        texts = [(f.cue, f.cue + f.answer, f.cue + f.answer + f.end, f.question, f.question + f.answer) for f in facts]
        ids = self.tokenizer([t for group in texts for t in group], add_special_tokens=False)["input_ids"]
        pieces = []
        for i in range(0, len(ids), 5):
            cue, told, whole, question, asked = ids[i : i + 5]
            start, again = _common(cue, told), _common(question, asked)
            answer = told[start:]
            if answer and asked[again:] == answer and whole[: len(told)] == told:
                pieces.append(_Piece(told[:start], answer, whole[len(told) :], asked[:again]))
        return pieces


def _alike(a: _Piece, b: _Piece) -> bool:
    """Whether the cue of one also begins what the other states, so that it has two answers."""
    return any(x.cue == (y.cue + y.answer)[: len(x.cue)] for x, y in ((a, b), (b, a)))


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest beginning that both have."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
