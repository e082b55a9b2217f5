"""Perplexity of essays by position: nats per token in spans that double, up to 32,768 tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tptt.hf.read_with_cache import read_with_cache

from .greedy import CHUNK

TABLE, TASK = "perplexity", "essays"
BOUNDS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Ends of the spans; the first begins at 0."""
TEXTS = 4
"""Texts of the last bound's length. The error is taken over them, because tokens of one text are not independent."""


def essay_texts(file: Path, tokenizer: Any, longest: int, most: int) -> list[list[int]]:
    """The essays of ``file`` as ids, cut into at most ``most`` texts of ``longest`` tokens.

    Each begins with the tokenizer's first token, if it writes one. A file that is shorter is one text.

    Raises:
        FileNotFoundError: The file is not there; the message names the command that writes it.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: `python -m benchmarks.real prepare` writes it")
    first = [i for i in tokenizer("").input_ids[:1] if i == tokenizer.bos_token_id]
    # some eight characters a token: more than the texts need
    text = file.read_text(encoding="utf-8")[: 8 * longest * most]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    step = longest - len(first)
    starts = range(0, max(1, len(ids) - step + 1), step)
    return [first + ids[start : start + step] for start in starts][:most]


def text_losses(model: Any, ids: list[int], chunk: int | None) -> Iterator[torch.Tensor]:
    """Nats of each token but the first, in pieces, in order.

    Args:
        model: A causal language model.
        ids: T of them.
        chunk: Tokens of one call, with the model's cache; None: one call without a cache, whose logits are computed
            piece by piece. Both are exact.

    Raises:
        ValueError: The model caps its logits, which one call does not compute.
    """
    if getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None):
        raise ValueError(f"{type(model).__name__} caps its logits: its perplexity by position is not set up")
    tokens = torch.tensor([ids], device=model.device)
    if chunk is None:
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        parts: Iterator[tuple[torch.Tensor, int]] = ((head(part), part.shape[1]) for part in states.split(CHUNK, dim=1))
    else:
        parts = _with_cache(model, tokens, chunk)
    done = 0
    for logits, count in parts:
        labels = tokens[0, done + 1 : done + count + 1]
        yield F.cross_entropy(logits[0, : len(labels)].float(), labels, reduction="none").double().cpu()
        done += count


def _with_cache(model: Any, tokens: torch.Tensor, chunk: int) -> Iterator[tuple[torch.Tensor, int]]:
    cache = None
    for piece in tokens.split(chunk, dim=1):
        outputs, cache = read_with_cache(model, piece, cache)
        yield outputs.logits, piece.shape[1]


def span_losses(losses: Iterator[torch.Tensor], bounds: tuple[int, ...]) -> Iterator[tuple[int, float, int]]:
    """(end of a span, mean of its losses, number of its tokens), each as soon as it is complete.

    ``losses`` begin with the token at position 1. A span that they do not reach is left out, one that they end in is
    not complete and left out as well, unless it is the first.
    """
    found, place = torch.zeros(0, dtype=torch.float64), 1
    ends = list(bounds)
    for piece in losses:
        found = torch.cat([found, piece])
        while ends and place + len(found) >= ends[0]:
            count = ends[0] - place
            yield ends[0], found[:count].mean().item(), count
            found, place = found[count:], ends.pop(0)
    if len(ends) == len(bounds) and len(found):
        yield bounds[0], found.mean().item(), len(found)
