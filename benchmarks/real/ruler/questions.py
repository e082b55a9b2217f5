"""RULER's question answering: documents that answer a question among documents that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..draws import Draws
from ..fill import Draft
from ..material import Material
from ..sources import Question

_CHARACTERS = 4.2
"""Of a token, about: the size of these haystacks is counted in it."""


@dataclass(frozen=True)
class Documents:
    """Numbered documents and a question.

    The documents that answer it are always there. Those near to them come first, then others, in a drawn order, as far
    as they fit; one that does not is passed over, so that short rows are filled too. RULER keeps all ten of a HotpotQA
    question together, which 1,024 tokens do not hold.

    Args:
        data: "squad" or "hotpotqa".
        near: Whether the documents near to the answering ones are taken.
        alone: Whether no other documents are added at all.
        said: Whether only questions are asked whose answer stands in a document that answers them: not "yes" or "no".
    """

    data: str
    near: bool = True
    alone: bool = False
    said: bool = False

    @property
    def smallest(self) -> int:
        """The least room for documents beside the answering ones, in tokens."""
        return 0

    def largest(self, material: Material) -> int:
        """None for an answering document alone, else more than any length holds."""
        return 0 if self.alone else 1 << 20

    def questions(self, material: Material) -> list[Question]:
        """The questions that may be asked."""
        found: Sequence[Question] = getattr(material, self.data)
        return [q for q in found if not self.said or any(a in d for a in q.answers for d in q.gold)]

    def draft(self, material: Material, draws: Draws, size: int, length: int, asked: Question) -> Draft:
        """The row's texts with about ``size`` tokens of documents beside the answering ones.

        Args:
            material: Of the split.
            draws: A new stream, the same for every size.
            size: In tokens, as `_CHARACTERS` counts them.
            length: Not asked.
            asked: The question.
        """
        template = material.templates["qa"]
        head, tail = template.text.split("{context}")
        known = {*asked.gold, *asked.near}
        others = [d for d in getattr(material, f"{self.data}_documents") if d not in known]
        order = [*(draws.shuffled(asked.near) if self.near else ()), *draws.shuffled(others)]
        taken, room = list(asked.gold), size * _CHARACTERS
        for document in order:
            if len(document) <= room:
                taken.append(document)
                room -= len(document)
        documents = [f"Document {i}:\n{document}" for i, document in enumerate(draws.shuffled(taken), 1)]
        context, question = head + "\n\n".join(documents), tail.format(query=asked.question)
        return Draft(context, question, template.answer_prefix, list(asked.answers))
