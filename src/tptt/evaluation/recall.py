"""Recall of facts by how far back they were stated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from tptt.data import IGNORE, RecallBatch, RecallSampler

from .perplexity import evaluating


@dataclass(frozen=True)
class RecallScore:
    """How many of the asked answers were predicted, each with all of its tokens.

    Args:
        length: tokens of a row.
        window: an answer stated more tokens back is beyond it.
        inside, beyond: shares of right answers in [0, 1]; None where nothing was asked.
        inside_count, beyond_count: how many answers were asked.
        by_distance: {largest distance of a bin in tokens: (right, asked)}; bins end at powers of two.
    """

    length: int
    window: int
    inside: float | None
    beyond: float | None
    inside_count: int
    beyond_count: int
    by_distance: dict[int, tuple[int, int]]


def _share(hits: torch.Tensor) -> float | None:
    return hits.float().mean().item() if len(hits) else None


def _by_answer(drawn: RecallBatch, hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether all tokens of each asked answer were predicted, and its distance; ``hits`` [B, T - 1] says so of the
    tokens 1 to T - 1."""
    asked = drawn.answers[:, 1:] != IGNORE
    row = torch.arange(len(asked))[:, None].expand_as(asked)[asked]
    answer = row * drawn.number.shape[1] + drawn.number[:, 1:][asked]
    _, which = answer.unique(return_inverse=True)
    count = int(which.max()) + 1 if len(which) else 0
    right = torch.ones(count, dtype=torch.long).scatter_reduce(0, which, hits[asked].long(), "amin")
    distance = torch.zeros(count, dtype=torch.long).scatter_reduce(0, which, drawn.distance[:, 1:][asked], "amax")
    return right.bool(), distance


def recall_accuracy(
    model,
    recall: RecallSampler,
    length: int,
    window: int,
    rows: int = 32,
    seed: int = 0,
    facts: int | None = None,
    tokens_per_batch: int = 4096,
) -> RecallScore:
    """Ask ``rows`` recall rows of ``length`` tokens; "beyond" are answers stated more than ``window`` tokens back.

    The token that has to know the value stands one before it, so a value at distance ``window`` is the last it sees.

    Raises:
        ValueError: no row fits (see `KeyValueRecall.draw`), or ``rows`` < 1.
    """
    if rows < 1:
        raise ValueError(f"rows must be 1 or more, got {rows}")
    drawn = recall.draw(rows, length, torch.Generator().manual_seed(seed), facts)
    hits = []
    step = max(1, tokens_per_batch // length)
    with evaluating(model):
        for ids, answers in zip(drawn.input_ids.split(step), drawn.answers.split(step), strict=True):
            predicted = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].argmax(-1).cpu()
            hits.append(predicted == answers[:, 1:])
    right, distance = _by_answer(drawn, torch.cat(hits))
    far = distance > window
    bins = torch.pow(2, distance.float().log2().ceil()).long()
    by_distance = {int(b): (int(right[bins == b].sum()), int((bins == b).sum())) for b in bins.unique(sorted=True)}
    return RecallScore(
        length, window, _share(right[~far]), _share(right[far]), int((~far).sum()), int(far.sum()), by_distance
    )


def recall_by_generation(
    model,
    recall: RecallSampler,
    length: int,
    window: int,
    rows: int = 8,
    seed: int = 0,
    facts: int | None = None,
) -> tuple[int, int]:
    """How many answers the model generates right, and how many were asked.

    Each row is asked for its last answer that was stated more than ``window`` tokens back. The model reads all that
    stands before the answer and then writes greedily from its cache. The arguments are those of `recall_accuracy`.

    Raises:
        ValueError: as `recall_accuracy`.
    """
    if rows < 1:
        raise ValueError(f"rows must be 1 or more, got {rows}")
    drawn = recall.draw(rows, length, torch.Generator().manual_seed(seed), facts)
    prompts, answers = [], []
    for ids, asked, distance, number in zip(*vars(drawn).values(), strict=True):
        far = number[(asked != IGNORE) & (distance > window)]
        if len(far):
            at = (number == far[-1]).nonzero()[:, 0]
            prompts.append(ids[: at[0]])
            answers.append(asked[at])
    if not prompts:
        return 0, 0
    longest = max(map(len, prompts))
    ids = torch.stack([F.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = torch.stack([F.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts])
    with evaluating(model):
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            eos_token_id=None,
            max_new_tokens=max(map(len, answers)),
            pad_token_id=0,
        )[:, longest:].cpu()
    right = sum(bool(torch.equal(w[: len(a)], a)) for w, a in zip(written, answers, strict=True))
    return right, len(answers)
