"""A call of a causal language model that goes on from a cache, under whatever name the model takes it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from .compat import CACHE_ARGUMENTS, UnsupportedTransformersError, cache_argument, cache_keyword, cache_of


def _reader(model: nn.Module) -> nn.Module:
    """The model whose forward names its arguments: peft's hands on what it is given."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def cache_refusal(model: nn.Module) -> str | None:
    """Why ``model`` cannot go on from a cache, by the signature of its forward; None: it can."""
    reader = _reader(model)
    if cache_argument(reader) is not None:
        return None
    known = ", ".join(CACHE_ARGUMENTS)
    named = [n for n in inspect.signature(type(reader).forward).parameters if "cache" in n]
    other = [n for n in named if n not in ("use_cache", "cache_position")]
    if other:
        return f"{type(reader).__name__} takes a cache as {', '.join(other)}; known names are {known}"
    return f"{type(reader).__name__} keeps no cache: its forward takes none of {known}"


def read_with_cache(model: nn.Module, ids: torch.Tensor, cache: Any = None, logits: int = 0) -> tuple[Any, Any]:
    """Read ``ids`` [B, T] behind ``cache``.

    Args:
        model: a causal language model.
        ids: the new tokens.
        cache: what was read before; None lets the model make a cache of its own kind.
        logits: number of last tokens whose logits are wanted, where the family can leave the others out; 0 is all.

    Returns:
        the model's outputs, and the cache that holds these tokens as well.

    Raises:
        ValueError: the model keeps no cache.
        UnsupportedTransformersError: it takes a cache and returns none.
    """
    if (reason := cache_refusal(model)) is not None:
        raise ValueError(reason)
    reader = _reader(model)
    options = {} if cache is None else cache_keyword(reader, cache)
    if logits and "logits_to_keep" in inspect.signature(type(reader).forward).parameters:
        options["logits_to_keep"] = logits
    outputs = model(input_ids=ids, use_cache=True, **options)
    found = cache_of(outputs)
    if found is None:
        raise UnsupportedTransformersError(
            f"{type(reader).__name__} takes a cache as {cache_argument(reader)!r} and returned none for use_cache=True"
        )
    return outputs, found
