"""The token ids of a row's prompt, and where its context ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .rows import Row, prompt_of, special_tokens


@dataclass(frozen=True)
class Prompt:
    """A prompt in two parts: what may be compressed before the question is seen, and the rest.

    Args:
        context: Ids up to the end of the row's context, with what a chat template writes in front of it.
        question: Ids of the question, of what the template writes behind it, and of the answer's prefix.
    """

    context: list[int]
    question: list[int]

    @classmethod
    def of(cls, row: Row, tokenizer: Any) -> Prompt:
        """The prompt is tokenised as one text; a token on both sides of the context's end belongs to the question.

        Args:
            row: The row.
            tokenizer: A fast tokenizer, which says where in the text its tokens lie.

        Raises:
            ValueError: The chat template changes the context, or nothing follows the context.
        """
        text = prompt_of(row, tokenizer)
        start = text.find(row.context)
        if start < 0:
            raise ValueError(f"the chat template changes the context of row {row.key}: its end cannot be found")
        found = tokenizer(text, add_special_tokens=special_tokens(tokenizer), return_offsets_mapping=True)
        ids, end = list(found["input_ids"]), start + len(row.context)
        read = sum(1 for _, last in found["offset_mapping"] if last <= end) if row.context else 0
        if read == len(ids):
            raise ValueError(f"row {row.key} has nothing behind its context, so nothing begins its answer")
        return cls(ids[:read], ids[read:])

    @property
    def tokens(self) -> int:
        """Tokens of both parts."""
        return len(self.context) + len(self.question)
