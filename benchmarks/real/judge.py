"""RULER's judgement of a generated text (arXiv 2404.06654): the references are looked for, without regard to case."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(answer: str) -> str:
    """A generated text as RULER judges it: control characters become line ends, white space around it goes."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def all_found(answer: str, references: Sequence[str]) -> float:
    """RULER's ``string_match_all`` of one row: the part of the ``references`` that the answer contains, in [0, 1]."""
    text = cleaned(answer).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def any_found(answer: str, references: Sequence[str]) -> float:
    """RULER's ``string_match_part`` of one row: 1 if the answer contains one of the ``references``, else 0."""
    text = cleaned(answer).lower()
    return float(any(reference.lower() in text for reference in references))


JUDGES = {"all": all_found, "any": any_found}


def score(answer: str, references: Sequence[str], judge: str) -> float:
    """The score of a generated text in [0, 1]. More text never lowers it.

    Args:
        answer: The generated text without the answer's prefix.
        references: Of the row, at least one.
        judge: Of the row, a key of `JUDGES`.

    Raises:
        ValueError: No such judge, or no reference.
    """
    if judge not in JUDGES:
        raise ValueError(f"there is no judge {judge!r}; there are {', '.join(JUDGES)}")
    if not references:
        raise ValueError("an answer cannot be judged without a reference")
    return JUDGES[judge](answer, references)


def mean(scores: Sequence[float]) -> float:
    """The mean of the scores.

    Raises:
        ValueError: There are none.
    """
    if not scores:
        raise ValueError("the mean of no scores is not defined")
    return math.fsum(scores) / len(scores)


def standard_error(scores: Sequence[float]) -> float | None:
    """Standard error of the mean (sample deviation over the root of the count); None of fewer than two scores.

    Equal scores give 0, which understates what is not known of a share near 0 or 1: tables give the count beside it.
    """
    if len(scores) < 2:
        return None
    middle = mean(scores)
    squares = math.fsum((x - middle) ** 2 for x in scores)
    return math.sqrt(squares / (len(scores) - 1) / len(scores))
