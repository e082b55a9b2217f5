"""Ranks, trains and measures one choice of layers that keep their whole context."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.answers import LEAST, recall_until
from benchmarks.held_out import parts_of
from benchmarks.runs import Row, Runs
from tptt import MemoryConfig, TpttConfig, TpttModel
from tptt.convert import choose_layers
from tptt.convert.lora import lora_config
from tptt.convert.window_only import window_alone
from tptt.evaluation import mag_weight, measured_size, perplexity, verify
from tptt.evaluation.perplexity import evaluating
from tptt.evaluation.verify import TOLERANCE
from tptt.hf import find_attention
from tptt.hf.compat import cache_keyword
from tptt.inference.fingerprint import fingerprint
from tptt.train import Corpus, TrainingSettings, train
from tptt.train.auto_layers import first_rows
from tptt.train.base import load_tokenizer
from tptt.train.begin import begin_conversion

LENGTHS = (1, 2, 4)  # times the training length
PART = "test"  # of the held-out text: the arms are given, none is chosen by what it recalls
_TEXT = 32_768  # tokens of text that are measured at each length
_FAR = 10**9  # tokens at which windows weigh nothing: there every budget is a number of layers

Layers = tuple[int, ...]


def evenly(order: Layers, count: int) -> Layers:
    """``count`` of the layers, in the middle of as many equal parts."""
    return tuple(int((i + 0.5) * len(order) / count) for i in range(count))


ARMS: dict[str, Callable[[Layers, int], Layers]] = {
    "by KL": lambda order, n: order[:n],
    "evenly": evenly,
    "last": lambda order, n: tuple(range(len(order) - n, len(order))),
    "ranked last by KL": lambda order, n: order[len(order) - n :],
}


class Bench:
    """One base, one training budget.

    Args:
        base: folder or hub id.
        tokens, length, window: of a training, of its rows, of the softmax of layers with a memory.
        runs: where the results are kept.
        answers: beyond the window that a share of recall rests on.
    """

    def __init__(self, base: str, tokens: int, length: int, window: int, runs: Runs, answers: int = LEAST) -> None:
        self.base, self.tokens, self.length, self.window, self.runs = base, tokens, length, window, runs
        self.answers = answers
        self.corpora: dict[int, Corpus] = {}
        inner = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.layers = tuple(x.layer for x in find_attention(inner))
        self.name = Path(base).name if Path(base).is_dir() else base
        self.parameters = inner.num_parameters()
        self.weights = fingerprint(inner)[:12]  # another base in the same folder has results of its own
        self.lora = lora_config(inner)

    def key(self, kind: str, **more) -> Row:
        """What a result depends on beside the code."""
        memory = MemoryConfig(max_self_attn_length=self.window)  # another default is another result
        fixed = {"base": self.name, "weights": self.weights, "memory": vars(memory), "answers": self.answers}
        return {"kind": kind, "settings": vars(self.settings(0))} | fixed | more

    def settings(self, seed: int) -> TrainingSettings:
        return TrainingSettings(tokens=self.tokens, seq_len=self.length, seed=seed, probe_steps=0)

    def corpus(self, seed: int) -> Corpus:
        if seed not in self.corpora:
            tokenizer = load_tokenizer(self.config())
            self.corpora[seed] = Corpus.of(tokenizer, None, self.tokens, LENGTHS[-1] * self.length, seed)
        return self.corpora[seed]

    def config(self, **options) -> TpttConfig:
        return TpttConfig(base_model_name=self.base, lora_config=self.lora, **options)

    def model(self, seed: int, whole: Iterable[int]) -> TpttModel:
        """Untrained: the layers ``whole`` as in the base, the others with window and memory; no memory where all
        are."""
        memory = [n for n in self.layers if n not in tuple(whole)]
        if not memory:
            torch.manual_seed(seed)
            return window_alone(TpttModel(self.config(mag_weight=0.0), dtype=torch.float32))
        config, settings = self.config(layers=memory, max_self_attn_length=self.window), self.settings(seed)
        return begin_conversion(config, self.corpus(seed), settings, self.length, dtype=torch.float32).model

    def ranking(self, seed: int) -> Row:
        """All layers in the order in which they would be restored."""

        def make() -> Row:
            model = self.model(seed, ())
            rows = first_rows(self.corpus(seed), self.settings(seed), self.length)
            with mag_weight(model, 0.0):
                choice = choose_layers(model, rows, 1 - 1e-6, _FAR)
            return {
                "order": [*choice.whole, *choice.memory],
                "kl": [choice.start, *(x.kl[x.taken] for x in choice.rounds)],
                "first": choice.rounds[0].kl if choice.rounds else {},
            }

        return self.runs.once(self.key("ranking", seed=seed), make)

    def trained(self, seed: int, whole: Layers) -> Row:
        """What a model with these whole layers has learned."""

        def make() -> Row:
            model = self.model(seed, whole)
            train(model, self.corpus(seed), self.settings(seed), self.length)
            return self.measured(model, seed)

        return self.runs.once(self.key("run", seed=seed, whole=sorted(whole)), make)

    def untrained(self) -> Row:
        """The base as it is."""
        return self.runs.once(self.key("base"), lambda: self.measured(self.plain(), 0))

    def plain(self):
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)

    def measured(self, model, seed: int) -> Row:
        """By length: perplexity, and recall inside and beyond the window; bytes of keys and values after one row.

        Raises:
            RuntimeError: reading through a cache does not give what one pass gives, or a token sees the future.
        """
        for check, found in verify(model, ("no future", "pieces")).items():
            if not isinstance(found, float) or found > TOLERANCE:
                raise RuntimeError(f"{check}: {found!r}")
        corpus = parts_of(self.corpus(seed))[PART]
        out: dict[str, Any] = {"part": PART, "perplexity": {}, "inside": {}, "beyond": {}}
        for times in LENGTHS:
            n = times * self.length
            score = recall_until(model, corpus.recall(), n, self.window, seed, self.answers)
            out["perplexity"][str(times)] = perplexity(model, corpus.text(n, _TEXT))
            out["inside"][str(times)], out["beyond"][str(times)] = score.inside.written, score.beyond.written
        out["kv_bytes"] = self.held(model, corpus.held_out)
        return out

    def held(self, model, ids: torch.Tensor) -> int:
        """Bytes of keys and values after a row whose last token came alone: then a window is fullest."""
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        with evaluating(model):
            for piece in ids[: self.length].split([self.length - 1, 1]):
                model(input_ids=piece[None], use_cache=True, **cache_keyword(model, cache))
        return measured_size(cache).kv_bytes
