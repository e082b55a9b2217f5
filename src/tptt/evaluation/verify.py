"""Invariants that a causal language model has to keep, with a memory or without one.

Each check computes the same thing in two ways and returns by how much they differ: the largest difference of the logits
over the largest logit; float32 leaves about 1e-6. Legend: B batch, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from tptt.hf.read_with_cache import cache_refusal, read_with_cache

from .perplexity import evaluating

TOKENS, TOLERANCE = 30, 2e-5
_PIECES = (11, 1, 1, 14, 3)


class NotApplicable(Exception):
    """Why a check says nothing about a model."""


def _ids(model, rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Random ids without the special ones that come first in most vocabularies."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(3, vocabulary - 1), vocabulary, (rows, tokens), generator=generator).to(model.device)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))


def no_future(model) -> float:
    """Logits do not depend on later tokens, in padded rows too."""
    ids = _ids(model, 2, TOKENS)
    mask, cut = torch.ones_like(ids), 20
    mask[0, :7], mask[1, TOKENS - 4 :] = 0, 0
    other = torch.cat([ids[:, :cut], _ids(model, 2, TOKENS - cut, seed=1)], 1)
    a, b = (model(input_ids=x, attention_mask=mask, use_cache=False).logits[:, :cut] for x in (ids, other))
    real = mask[:, :cut].bool()  # eager attention averages over everything at a padded place
    return _difference(a[real], b[real])


def pieces(model) -> float:
    """Reading in pieces through a cache gives the logits of one pass."""
    if (reason := cache_refusal(model)) is not None:
        raise NotApplicable(reason)
    ids, cache, out, start = _ids(model, 2, TOKENS), None, [], 0
    want = model(input_ids=ids, use_cache=False).logits
    for n in _PIECES:
        part, cache = read_with_cache(model, ids[:, start : start + n], cache)
        out.append(part.logits)
        start += n
    return _difference(torch.cat(out, 1), want)


def left_padding(model) -> float:
    """Padding in front, and positions that do not count it, change nothing."""
    ids, padded = _ids(model, 2, TOKENS), 6
    pad = torch.full((2, padded), model.config.get_text_config().pad_token_id or 0, device=ids.device)
    mask = torch.cat([torch.zeros_like(pad), torch.ones_like(ids)], 1)
    options: dict = {"attention_mask": mask, "use_cache": False}
    if _takes(model, "position_ids"):
        options["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    got = model(input_ids=torch.cat([pad, ids], 1), **options).logits[:, padded:]
    return _difference(got, model(input_ids=ids, use_cache=False).logits)


def greedy(model) -> float:
    """Greedy decoding with a cache gives the tokens it gives without: the share that differs."""
    return _tokens_differ(model)


def beams(model) -> float:
    """The same of beam search, which moves the cache's rows."""
    return _tokens_differ(model, num_beams=3)


def packed(model) -> float:
    """Several sequences in one row, told apart by position_ids, give the logits of separate rows."""
    if not _takes(model, "position_ids"):
        raise NotApplicable("it takes no position_ids")
    parts = [_ids(model, 1, n, seed=n) for n in (5, 17, 8)]
    positions = torch.cat([torch.arange(x.shape[1], device=x.device) for x in parts])[None]
    got = model(input_ids=torch.cat(parts, 1), position_ids=positions, use_cache=False).logits
    return _difference(got, torch.cat([model(input_ids=x, use_cache=False).logits for x in parts], 1))


def _takes(model, name: str) -> bool:
    return name in inspect.signature(type(model).forward).parameters


def _tokens_differ(model, **options) -> float:
    ids, new = _ids(model, 2, 13), 10
    options |= {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
    options |= {"eos_token_id": None}
    with_cache, without = (model.generate(ids, use_cache=cached, **options) for cached in (True, False))
    return float((with_cache != without).float().mean())


CHECKS: dict[str, Callable[..., float]] = {
    "no future": no_future,
    "pieces": pieces,
    "left padding": left_padding,
    "greedy": greedy,
    "beams": beams,
    "packed": packed,
}


def verify(model, checks: tuple[str, ...] = tuple(CHECKS)) -> dict[str, float | NotApplicable | Exception]:
    """The difference that each of ``checks`` finds, or the exception that says why there is none.

    Args:
        model: a causal language model in float32, small enough to run a few dozen tokens.
        checks: names of `CHECKS`.

    Raises:
        ValueError: an unknown check.
    """
    if unknown := [c for c in checks if c not in CHECKS]:
        raise ValueError(f"unknown check {', '.join(unknown)}; valid are {', '.join(CHECKS)}")
    found: dict[str, float | NotApplicable | Exception] = {}
    with evaluating(model):
        for name in checks:
            try:
                found[name] = CHECKS[name](model)
            except Exception as error:  # noqa: BLE001 - of any family; the others go on
                found[name] = error
    return found
