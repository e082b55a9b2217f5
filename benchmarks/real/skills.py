"""Skills kept: how far an arm's predictions are from the base's on held-out text.

The other skills (the last words of sentences, questions about a passage without distance) are rows like any others, of
the table "skills".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tptt.evaluation.kl import kl_from_base
from tptt.evaluation.perplexity import evaluating

TABLE, TASK = "skills", "kl"
LENGTH = 512
"""Tokens of a row of text."""
ROWS = 20


def text_rows(file: Path, tokenizer: Any, length: int, most: int) -> list[list[int]]:
    """The first ``most`` rows of ``length`` ids of the paragraphs in ``file``; a shorter file is one row.

    Raises:
        FileNotFoundError: The file is not there; the message names the command that writes it.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: `python -m benchmarks.real prepare` writes it")
    text = file.read_text(encoding="utf-8")[: 12 * length * most]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return [ids[start : start + length] for start in range(0, max(1, len(ids) - length + 1), length)][:most]


def divergence(model: Any, base: Any, ids: list[int]) -> float:
    """KL(base || model) in nats per token that is predicted; the text of ``ids`` is read in one call without a cache,
    as in training."""
    tokens = torch.tensor([ids], device=base.device)
    with evaluating(base), evaluating(model):
        ours, theirs = (m(input_ids=tokens.to(m.device), use_cache=False).logits for m in (model, base))
        return kl_from_base(ours, theirs).item() / (len(ids) - 1)
