"""Skills kept: how far an arm's predictions are from the base's on held-out text.

The other skills (the last words of sentences, questions about a passage without distance) are rows like any others, of
the table "skills".
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from tptt.evaluation.kl import kl_from_base
from tptt.evaluation.perplexity import evaluating

from .answers import answered
from .arms import Reader, load_base
from .job import Job
from .prepare import say

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


def measure_divergence(job: Job, reader: Reader, tokenizer: Any, rows: int | None = None) -> None:
    """Write KL(base || arm) in nats per token of each row of held-out paragraphs that is not there yet.

    The arm reads a row in one call without a cache, as in training.

    Raises:
        FileNotFoundError: The paragraphs are not prepared.
    """
    done = answered(job.file)
    file = job.prepared / "text" / f"paragraphs-{job.split}.txt"
    found = list(enumerate(text_rows(file, tokenizer, LENGTH, min(rows or ROWS, ROWS))))
    found = [(number, ids) for number, ids in found if (TABLE, TASK, LENGTH, number, job.split) not in done]
    if not found or job.arm.kind in ("base-yarn", "quantized"):
        return  # in a row of text without a cache they are the base
    base = load_base(job.base_folder)
    for number, ids in found:
        if job.late:
            return
        model, start = reader.model_for(LENGTH), time.perf_counter()
        tokens = torch.tensor([ids])
        with evaluating(base), evaluating(model):
            ours, theirs = (m(input_ids=tokens, use_cache=False).logits for m in (model, base))
            nats = kl_from_base(ours, theirs).item() / (len(ids) - 1)
        job.write(
            {
                "table": TABLE,
                "task": TASK,
                "length": LENGTH,
                "seed": number,
                "split": job.split,
                "nats": nats,
                "tokens": len(ids) - 1,
                "prefill_seconds": time.perf_counter() - start,
                "decode_seconds": 0.0,
            }
        )
    say(f"{job.arm.name}: KL to the base on {len(found)} rows of {LENGTH} tokens")
