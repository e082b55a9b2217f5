"""Trains and measures one cell: an arm, a budget, a seed on a base."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.runs import Runs
from benchmarks.timing import machine
from tptt import MemoryConfig, TpttConfig
from tptt.convert.lora import lora_config
from tptt.data import FORMATS as ALL_FORMATS
from tptt.data import chosen_formats
from tptt.evaluation import branch_use, perplexity, perplexity_by_position, recall_accuracy, recall_by_generation
from tptt.hf import memories
from tptt.inference.snapshot import fingerprint
from tptt.quickstart.records import FACTS, RecordCorpus
from tptt.train import Corpus, TrainingSettings, default_rates, train
from tptt.train.base import load_tokenizer
from tptt.train.begin import begin_conversion

from .arms import FORMATS, Arm

LENGTHS = (1, 2, 4, 8)  # times the training length
_TOKENS = 16_384  # recall rows of a format and a length have about as many
_ROWS = 4  # and are this many at least
_TEXT = 16_384  # tokens of text measured at each length
_FACTS = 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_CORPUS = 4_000_000  # tokens, as many for every budget: budgets then differ in nothing else


class Bench:
    """One base.

    Args:
        base: folder.
        length, window: of training rows, and of the softmax, in tokens.
        hidden: channels of the base, which its learning rates depend on.
        runs: where results are kept.
    """

    def __init__(self, base: str | Path, length: int, window: int, hidden: int, runs: Runs) -> None:
        self.base, self.length, self.window, self.hidden, self.runs = str(base), length, window, hidden, runs
        self.corpora: dict[int, Corpus] = {}

    @property
    def here(self) -> bool:
        """Whether the base is there to be trained; its results are without it."""
        return Path(self.base).exists()

    @cached_property
    def plain(self):
        """The base as it is."""
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).to(DEVICE)

    @cached_property
    def weights(self) -> str:
        """Which base it is. One that is no longer here is the one that rows of this length were measured on."""
        if self.here:
            return fingerprint(self.plain)[:12]
        found = [x["key"] for x in self.runs.all() if x["key"].get("change") == "base"]
        return next(k["weights"] for k in found if (k["length"], k["window"]) == (self.length, self.window))

    def corpus(self, seed: int, records: bool = False) -> Corpus:
        if seed not in self.corpora:
            tokenizer = load_tokenizer(TpttConfig(base_model_name=self.base))
            self.corpora[seed] = Corpus.of(tokenizer, None, _CORPUS, LENGTHS[-1] * self.length, seed)
        found = self.corpora[seed]
        return RecordCorpus(**vars(found)) if records else found

    def settings(self, arm: Arm, tokens: int, seed: int) -> TrainingSettings:
        formats = chosen_formats(without=(arm.without,)) if arm.without else "all"
        more = {"facts": FACTS} if arm.records else {}
        rates = dict(
            zip(("learning_rate", "memory_learning_rate"), default_rates(self.hidden), strict=True)
        )  # a result depends on the numbers
        return TrainingSettings(
            tokens=tokens, seq_len=self.length, seed=seed, probe_steps=0, recall_formats=formats,
            **more | rates | arm.settings,
        )  # fmt: skip

    def key(self, arm: Arm, tokens: int, seed: int) -> dict[str, Any]:
        """What a result depends on: other weights, configuration or settings are another result."""
        config = MemoryConfig(max_self_attn_length=self.window, **arm.config)
        found = {
            "weights": self.weights, "change": getattr(arm.change, "__name__", None), "memory": vars(config),
            "lora": arm.rank, "settings": vars(self.settings(arm, tokens, seed)),
        }  # fmt: skip
        if arm.targets != "auto":
            found["targets"] = arm.targets
        return found | {"records": True} if arm.records else found

    def untrained(self) -> dict[str, Any]:
        """The base as it is, whose context ends at ``length``."""
        key = {"weights": self.weights, "change": "base", "length": self.length, "window": self.window}
        return self.runs.once(key, self._as_it_is)

    def trained(self, arm: Arm, tokens: int, seed: int) -> dict[str, Any]:
        return self.runs.once(self.key(arm, tokens, seed), lambda: self._train(arm, tokens, seed))

    def _as_it_is(self) -> dict[str, Any]:
        about = {"parameters": self.plain.num_parameters(), "machine": machine(DEVICE)}
        return about | self._measured(self.plain, self.corpus(0), LENGTHS[:1], False)

    def _train(self, arm: Arm, tokens: int, seed: int) -> dict[str, Any]:
        settings, corpus = self.settings(arm, tokens, seed), self.corpus(seed, arm.records)
        lora = lora_config(self.plain, arm.rank, 2 * arm.rank, target_modules=arm.targets)
        config = TpttConfig(base_model_name=self.base, lora_config=lora, max_self_attn_length=self.window, **arm.config)
        model = begin_conversion(config, corpus, settings, self.length, dtype=torch.float32).model.to(DEVICE)
        if arm.change is not None:
            arm.change(model)
        history = train(model, corpus, settings, self.length)
        found = self._measured(model, corpus, LENGTHS, arm.cached)
        found["train_seconds"] = next(x["train_runtime"] for x in reversed(history) if "train_runtime" in x)
        found["threads"] = torch.get_num_threads()
        found["loss"] = [(x["step"], round(x["loss"], 4)) for x in history if "loss" in x]
        if arm.change is None:
            use = branch_use(model, corpus.recall(), self.length, self.window, 2 * _ROWS, seed)
            found["branches"] = {name: score.beyond for name, score in use.recall.items()}
            found["widths"] = [m.key_features.width for m in memories(model)]
            found["mu"] = [round(x.mu, 3) for x in use.layers]
        return found

    def _measured(self, model, corpus: Corpus, lengths: tuple[int, ...], generates: bool) -> dict[str, Any]:
        """All by length, as a multiple of the training length, and by format; records have no other."""
        n, records = self.length, isinstance(corpus, RecordCorpus)
        measured = ("all",) if records else FORMATS
        found: dict[str, Any] = {"perplexity": {}, "beyond": {}, "inside": {}, "by_distance": {}, "generated": {}}
        for times in lengths:
            found["perplexity"][times] = perplexity(model, corpus.text(times * n, _TEXT))
            names = ALL_FORMATS if times == 1 and not records else measured
            scores = {f: self._recall(model, corpus, f, times * n) for f in names}
            found["beyond"][times] = {f: s.beyond for f, s in scores.items()}
            found["inside"][times] = {f: s.inside for f, s in scores.items()}
            found["by_distance"][times] = {f: scores[f].by_distance for f in measured}
        longest = lengths[-1] * n
        bounds = [n // 8 * 2**i for i in range(20) if n // 8 * 2**i <= longest]
        same = corpus.text(LENGTHS[-1] * n, _TEXT)[:, :longest]  # of the base as well, which reads no further
        found["by_position"] = perplexity_by_position(model, same, bounds)
        if generates:
            for f in measured:
                found["generated"][f] = recall_by_generation(
                    model, corpus.recall(f, _FACTS), n, self.window, 4 * _ROWS, 1
                )
        return found

    def _recall(self, model, corpus: Corpus, name: str, length: int):
        rows = max(_ROWS, _TOKENS // length)
        return recall_accuracy(model, corpus.recall(name, _FACTS), length, self.window, rows, 1)
