"""The tables that text makes without rows: perplexity of essays by position, and the divergence from the base."""

from __future__ import annotations

import time
from typing import Any

from tptt.evaluation.perplexity import evaluating

from . import perplexity, skills
from .answers import answered
from .arms import Reader, load_base
from .job import Job
from .place import say

_AS_BASE = ("base", "base-yarn", "quantized")
"""Arms that are the base where a short text is read without a cache. `quantized` is it at every length, so its
perplexity is not measured."""


def measure_perplexity(job: Job, reader: Reader, tokenizer: Any, texts: int | None = None) -> None:
    """Write the spans of each text that are not there yet, until the time is over.

    Beyond the base's context `base-yarn` reads the whole text with the factor of its length.

    Raises:
        FileNotFoundError: The essays are not prepared.
        ValueError: The base caps its logits, which `perplexity.text_losses` does not compute.
    """
    if job.arm.kind == "quantized":
        return
    file = job.prepared / "text" / f"essays-{job.split}.txt"
    done, bounds = answered(job.file), perplexity.BOUNDS
    most = min(texts or perplexity.TEXTS, perplexity.TEXTS)
    for number, ids in enumerate(perplexity.essay_texts(file, tokenizer, bounds[-1], most)):
        ends = [end for end in bounds if end <= len(ids)] or [bounds[0]]
        if job.late or all(_key(job, perplexity, end, number) in done for end in ends):
            continue
        model, start = reader.model_for(len(ids)), time.perf_counter()
        with evaluating(model):
            losses = perplexity.text_losses(model, ids, reader.chunk)
            for end, nats, count in perplexity.span_losses(losses, bounds):
                now = time.perf_counter()
                seconds, start = now - start, now
                if _key(job, perplexity, end, number) not in done:
                    _write(job, perplexity, end, number, nats, count, seconds)
                    say(f"{job.arm.name} essays {number}, to position {end:,}: {nats:.3f} nats ({seconds:.0f} s)")


def measure_divergence(job: Job, reader: Reader, tokenizer: Any, rows: int | None = None) -> None:
    """Write KL(base || arm) of each row of held-out paragraphs that is not there yet, until the time is over.

    Raises:
        FileNotFoundError: The paragraphs are not prepared.
    """
    if job.arm.kind in _AS_BASE:
        return
    done, length = answered(job.file), skills.LENGTH
    file = job.prepared / "text" / f"paragraphs-{job.split}.txt"
    found = enumerate(skills.text_rows(file, tokenizer, length, min(rows or skills.ROWS, skills.ROWS)))
    left = [(number, ids) for number, ids in found if _key(job, skills, length, number) not in done]
    base = load_base(job.base_folder) if left else None
    for number, ids in left:
        if job.late:
            return
        start = time.perf_counter()
        nats = skills.divergence(reader.model_for(length), base, ids)
        _write(job, skills, length, number, nats, len(ids) - 1, time.perf_counter() - start)
    if left:
        say(f"{job.arm.name}: KL to the base on {len(left)} rows of {length} tokens")


def _key(job: Job, table: Any, length: int, number: int) -> tuple[str, str, int, int, str]:
    return table.TABLE, table.TASK, length, number, job.split


def _write(job: Job, table: Any, length: int, number: int, nats: float, tokens: int, seconds: float) -> None:
    names = ("table", "task", "length", "seed", "split")
    key = dict(zip(names, _key(job, table, length, number), strict=True))
    job.write(key | {"nats": nats, "tokens": tokens, "prefill_seconds": seconds, "decode_seconds": 0.0})
