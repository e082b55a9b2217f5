"""An answer, greedily decoded, with the bytes and seconds that it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tptt.evaluation import measured_size
from tptt.hf.modes import in_eval_mode
from tptt.hf.read_with_cache import read_with_cache

from .peak import peak_memory
from .prompts import Prompt

CHUNK = 512
"""Tokens that a model with a bounded cache reads in one call: what the call holds does not grow with the context."""
Done = Callable[[str], bool]


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt.

    Args:
        text: The answer without special tokens.
        tokens: Generated ones, the one that ends the answer included.
        stopped: "end": the model ended its answer; "found": nothing that follows could change its score; "room": the
            room for the answer was used up.
        context_tokens: Tokens of the context, which the cache has read when it is measured.
        prompt_tokens: Those of the whole prompt.
        bytes_at_question: What the cache held after the context and before the question, see `tptt.evaluation`.
        peak_bytes: By how much the process's resident memory rose at most while it read the context, the cache
            included; None: not measured.
        prefill_seconds: For context and question.
        decode_seconds: For all generated tokens but the first, which the prefill computes.
    """

    text: str
    tokens: int
    stopped: str
    context_tokens: int
    prompt_tokens: int
    bytes_at_question: int
    peak_bytes: int | None
    prefill_seconds: float
    decode_seconds: float


def read(model: Any, ids: list[int], cache: Any, chunk: int | None = CHUNK) -> tuple[torch.Tensor | None, Any]:
    """Read ``ids`` behind ``cache``.

    Args:
        model: A causal language model.
        ids: What to read.
        cache: What was read before; None: nothing.
        chunk: Tokens of one call. None: all in one call, which is faster where the cache grows anyway, but for the last
            token, after whose call a sliding layer holds its window and no more.

    Returns:
        the logits [V] of the last token (None without ids), and the cache.
    """
    last = None
    for piece in pieces(torch.tensor([ids], dtype=torch.long), chunk):
        outputs, cache = read_with_cache(model, piece.to(model.device), cache, logits=1)
        last = outputs.logits[0, -1]
    return last, cache


def pieces(ids: torch.Tensor, chunk: int | None) -> list[torch.Tensor]:
    """``ids`` [1, T] as `read` cuts them."""
    if not ids.shape[1]:
        return []
    if chunk is None:
        return [piece for piece in (ids[:, :-1], ids[:, -1:]) if piece.shape[1]]
    return list(ids.split(chunk, dim=1))


def warm_up(model: Any) -> None:
    """Read a few tokens, which brings the weights into memory: that is no part of a row's peak."""
    with in_eval_mode(model), torch.inference_mode():
        model(input_ids=torch.arange(8, device=model.device)[None], use_cache=False)


def end_tokens(model: Any) -> set[int]:
    """Ids that end an answer, by the model's generation settings, or else by its configuration."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = model.config.get_text_config(decoder=True).eos_token_id if found is None else found
    return set(found) if isinstance(found, list | tuple) else set() if found is None else {int(found)}


def answer(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    room: int,
    cache: Any = None,
    chunk: int | None = CHUNK,
    done: Done | None = None,
) -> Answer:
    """The greedy answer to ``prompt``.

    Args:
        model: A causal language model.
        tokenizer: For the text of the answer.
        prompt: Its context and question.
        room: Most tokens of the answer.
        cache: An empty one of the kind to be used; None: the one that the model makes.
        chunk: How the context is read, see `read`.
        done: Whether a text needs no more: decoding stops then. None: it never does.
    """
    ends = end_tokens(model)
    with in_eval_mode(model), torch.inference_mode():
        start = time.perf_counter()
        with peak_memory() as peak:
            _, cache = read(model, prompt.context, cache, chunk)
        held = 0 if cache is None else measured_size(cache).bytes
        logits, cache = read(model, prompt.question, cache)
        assert logits is not None  # a question is never empty
        ids = [int(logits.argmax())]
        read_at = time.perf_counter()
        stopped, text = _state(tokenizer, ids, ends, room, done)
        while not stopped:
            logits, cache = read(model, ids[-1:], cache)
            assert logits is not None
            ids.append(int(logits.argmax()))
            stopped, text = _state(tokenizer, ids, ends, room, done)
        end = time.perf_counter()
    return Answer(
        text,
        len(ids),
        stopped,
        len(prompt.context),
        prompt.tokens,
        held,
        peak.bytes,
        read_at - start,
        end - read_at,
    )


def _state(tokenizer: Any, ids: list[int], ends: set[int], room: int, done: Done | None) -> tuple[str, str]:
    """Why decoding stops after ``ids``, "" where it does not; and their text."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if ids[-1] in ends:
        return "end", text
    if done is not None and done(text):
        return "found", text
    return ("room" if len(ids) >= room else ""), text
