"""RULER's variable tracking: a value is assigned from variable to variable, hidden in noise."""

from __future__ import annotations

import string
from dataclasses import dataclass

from ..draws import Draws
from ..fill import Draft
from ..material import Material

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
_EXAMPLE_NOISES = 10
"""Of the worked example: the largest multiple of five with which RULER's stays within its 500 tokens."""


@dataclass(frozen=True)
class Chains:
    """One chain of ``hops`` assignments; a worked example with shorter names stands before it.

    Args:
        hops: Assignments after the first.
    """

    hops: int = 4

    @property
    def smallest(self) -> int:
        """The least number of noises: more than there are statements."""
        return self.hops + 2

    def largest(self, material: Material) -> int:
        """More than any length holds."""
        return 1 << 20

    def draft(self, material: Material, draws: Draws, size: int, length: int) -> Draft:
        """The row's texts with ``size`` noises. The answers are all variables of the chain.

        Args:
            material: Of the split.
            draws: A new stream, the same for every size.
            size: Noises.
            length: Not asked.
        """
        template = material.templates["variable_tracking"]
        head, tail = template.text.split("{context}")
        names, value = self._names(draws, 5), draws.between(10_000, 99_998)
        shown = names
        while any(name in other for name in shown for other in names):
            shown = self._names(draws, 3)
        shown_value = draws.between(10_000, 99_998)
        example = (
            head
            + self._context(draws, shown, shown_value, _EXAMPLE_NOISES)
            + tail.format(query=shown_value)
            + template.answer_prefix.format(query=shown_value, num_v=len(shown))
            + f" {' '.join(shown)}\n\n"
        )
        return Draft(
            f" {example}\n\n{head}{self._context(draws, names, value, size)}",
            tail.format(query=value),
            template.answer_prefix.format(query=value, num_v=len(names)),
            names,
        )

    def _names(self, draws: Draws, letters: int) -> list[str]:
        found: dict[str, None] = {}
        while len(found) <= self.hops:
            found[draws.letters(string.ascii_uppercase, letters)] = None
        return list(found)

    def _context(self, draws: Draws, names: list[str], value: int, noises: int) -> str:
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old} " for old, new in zip(names, names[1:], strict=False)]
        lines = [_NOISE] * noises
        places = sorted(draws.sample(range(noises), len(chain)))
        for before, (place, statement) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + before, statement)
        return " ".join(lines).replace(". \n", ".\n")
