"""The models that are timed, and caches filled up to a context. Legend: W window of the softmax branch in tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import tptt
from tptt.convert.window_only import window_alone
from tptt.evaluation.verify import TOLERANCE, verify
from tptt.hf import memories
from tptt.hf.compat import cache_keyword
from tptt.inference import Session

DYNAMIC, STATIC = "base, dynamic cache", "base, static cache"
BASES = (DYNAMIC, STATIC)
WINDOWS, CHUNK = (64, 512), 512
LONGEST = 2**20
VOCABULARY = 2048


def converted(window: int) -> str:
    """Name of the converted model with that window."""
    return f"W = {window}"


def build() -> dict[str, torch.nn.Module]:
    """The base, under both its names, and with the same weights a converted model for each window.

    The converted models have the default memory, and keep their window.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2 * LONGEST,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    base = LlamaForCausalLM(config).eval()
    found: dict[str, torch.nn.Module] = dict.fromkeys(BASES, base)
    for window in WINDOWS:
        settings = tptt.MemoryConfig(max_self_attn_length=window)
        found[converted(window)] = tptt.attach_memory(copy.deepcopy(base), settings)
    return found


def without_memory(models: dict, window: int) -> torch.nn.Module:
    """The converted model with that window, whose memory is gone: what is left of its time is the memory's."""
    return window_alone(copy.deepcopy(models[converted(window)]))


def random_ids(tokens: int) -> torch.Tensor:
    """Token ids [tokens]."""
    return torch.randint(3, VOCABULARY, (tokens,))


def filled(model, name: str, tokens: int, room: int) -> Cache:
    """A cache of the base as after ``tokens`` tokens of random keys and values; a static one has ``room`` for more."""
    config = model.config
    if name == STATIC:
        cache: Cache = StaticCache(config=config, max_cache_len=tokens + room)
    else:
        cache = DynamicCache(config=config)
    shape = (1, config.num_key_value_heads, tokens, config.head_dim)
    for i in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), i)
    return cache


def read(model, contexts: tuple[int, ...]) -> dict[int, Cache]:
    """The cache of a converted model after each context of random tokens."""
    session, found = Session(model, chunk_size=CHUNK), {}
    for tokens in contexts:
        session.read(random_ids(tokens - session.tokens))
        found[tokens] = copy.deepcopy(session.cache)
    return found


def rewind(name: str, cache: Cache, tokens: int) -> None:
    """Take the last ``tokens`` tokens out of a base's cache again, so that every timed call finds the same context."""
    if name == STATIC:
        for layer in cache.layers:
            layer.cumulative_length.sub_(tokens)
    elif name == DYNAMIC:
        cache.crop(-tokens)


@dataclass
class Forward:
    """A forward pass of ``ids`` [1, n] behind what ``cache`` holds, again and again.

    A base's cache is as before after each; a converted model reads on, which its speed does not depend on.
    """

    name: str
    model: torch.nn.Module
    cache: Cache
    ids: torch.Tensor

    def __call__(self) -> torch.Tensor:
        """Logits of the last token."""
        out = self.model(input_ids=self.ids, use_cache=True, logits_to_keep=1, **cache_keyword(self.model, self.cache))
        rewind(self.name, self.cache, self.ids.shape[1])
        return out.logits


@torch.no_grad()
def check(models: dict) -> str:
    """What is timed is right: reading in pieces and decoding equal one pass, and both caches of the base give the same.

    Raises:
        AssertionError: one of them does not.
    """
    found = {name: verify(model, ("pieces", "greedy")) for name, model in models.items() if name != STATIC}
    for name, values in found.items():
        if not all(isinstance(v, float) and v <= TOLERANCE for v in values.values()):
            raise AssertionError(f"{name}: {values}")
    tokens, one = 40, torch.tensor([[5]])
    logits = []
    for name in BASES:
        torch.manual_seed(1)
        cache = filled(models[name], name, tokens, 3)
        logits.append([Forward(name, models[name], cache, one)() for _ in range(2)])  # the second after a rewind
    difference = max(float((x - logits[0][0]).abs().max() / logits[0][0].abs().max()) for y in logits for x in y)
    if difference > TOLERANCE:
        raise AssertionError(f"a static and a dynamic cache differ by {difference:.0e}")
    pieces = ", ".join(f"{name} {values['pieces']:.0e}" for name, values in found.items())
    return (
        f"Largest difference of cached from uncached logits, relative: {pieces}; of the static from the dynamic cache "
        f"{difference:.0e}"
    )


def step_bytes(model, window: int | None, context: int) -> int:
    """Bytes that a decoding step has to move at least: weights once, keys and values once, the state in and out."""
    config = model.config
    weights = sum(p.nbytes for n, p in model.named_parameters() if "embed_tokens" not in n)
    kept = context if window is None else min(window, context)
    keys = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * kept
    states = sum(m.num_states * m.key_features.width * m.value_dim * 4 for m in memories(model))
    return weights + keys + 2 * states


def crossover_by_bytes(models: dict, window: int) -> int:
    """The context from which the converted model moves fewer bytes than the base."""
    own = models[converted(window)]
    return next(n for n in range(1, LONGEST) if step_bytes(models[DYNAMIC], None, n) > step_bytes(own, window, n))
