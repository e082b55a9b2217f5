"""Trains and measures one cell: an arm, a budget, a seed on a base."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.answers import LEAST, Share, beyond_counts, draws_of, generated_until, recall_until
from benchmarks.held_out import PARTS, parts_of
from benchmarks.runs import Row, Runs
from tptt import MemoryConfig, TpttConfig
from tptt.convert.lora import lora_config
from tptt.data import FORMATS as ALL_FORMATS
from tptt.data import TextSplit, chosen_formats, stdlib_text
from tptt.evaluation import branch_use, perplexity, perplexity_by_position
from tptt.hf import memories
from tptt.inference.fingerprint import fingerprint
from tptt.train import Corpus, TrainingSettings, default_rates, train
from tptt.train.base import load_tokenizer
from tptt.train.begin import begin_conversion

from .arms import FORMATS, Arm
from .records import FACTS, RecordCorpus, with_records

LENGTHS = (1, 2, 4, 8)  # times the training length
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_FACTS = 8
_ROWS = 16  # that are drawn at a time for the branches


@dataclass(frozen=True)
class Effort:
    """How much is read and measured.

    Args:
        answers: beyond the window that a share of recall rests on: in each format at the training length, in the
            formats of a cell together at greater lengths, in all formats together when answers are generated.
        text: tokens of text that perplexity is measured on at each length.
        corpus: tokens that are read to train on, as many for every budget: budgets then differ in nothing else.
    """

    answers: int = LEAST
    text: int = 16_384
    corpus: int = 4_000_000


class Bench:
    """One base.

    Args:
        base: folder.
        length, window: of training rows, and of the softmax, in tokens.
        hidden: channels of the base, which its learning rates depend on.
        runs: where results are kept.
        effort: how much is measured.
    """

    def __init__(
        self, base: str | Path, length: int, window: int, hidden: int, runs: Runs, effort: Effort | None = None
    ) -> None:
        self.base, self.length, self.window, self.hidden, self.runs = str(base), length, window, hidden, runs
        self.effort = effort or Effort()
        self.corpora: dict[int, Corpus] = {}
        self.parted: dict[int, dict[str, Corpus]] = {}

    @property
    def here(self) -> bool:
        """Whether the base is there to be trained; its results are there without it."""
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

    @cached_property
    def text(self) -> TextSplit:
        """What is trained and measured on: the running Python's own documentation."""
        return stdlib_text()

    def corpus(self, seed: int) -> Corpus:
        """The text, in an order of ``seed``."""
        if seed not in self.corpora:
            tokenizer = load_tokenizer(TpttConfig(base_model_name=self.base))
            self.corpora[seed] = Corpus.of(tokenizer, self.text, self.effort.corpus, LENGTHS[-1] * self.length, seed)
        return self.corpora[seed]

    def parts(self, seed: int) -> dict[str, Corpus]:
        """`parts_of` the corpus of ``seed``."""
        if seed not in self.parted:
            self.parted[seed] = parts_of(self.corpus(seed))
        return self.parted[seed]

    def settings(self, arm: Arm, tokens: int, seed: int) -> TrainingSettings:
        """How ``arm`` is trained, with every number that the result depends on."""
        of_lora, of_memory = default_rates(self.hidden)
        found: dict[str, Any] = {"learning_rate": of_lora, "memory_learning_rate": of_memory}
        if arm.without:
            found["recall_formats"] = chosen_formats(without=(arm.without,))
        if arm.records:
            found["facts"] = FACTS
        found |= arm.settings
        return TrainingSettings(tokens=tokens, seq_len=self.length, seed=seed, probe_steps=0, **found)

    def key(self, arm: Arm, tokens: int, seed: int) -> Row:
        """What a result depends on beside the code: other weights, configuration or settings are another result."""
        config = MemoryConfig(max_self_attn_length=self.window, **arm.config)
        found = {
            "weights": self.weights,
            "change": getattr(arm.change, "__name__", None),
            "memory": vars(config),
            "lora": arm.rank,
            "settings": vars(self.settings(arm, tokens, seed)),
        }
        if arm.targets != "auto":
            found["targets"] = arm.targets
        return found | {"records": True} if arm.records else found

    @property
    def base_key(self) -> Row:
        """Of the result of the base itself."""
        return {"weights": self.weights, "change": "base", "length": self.length, "window": self.window}

    def of_itself(self) -> Row:
        """The result of the base itself that is there: of today's code, else the last of older code.

        Raises:
            LookupError: there is none.
        """
        if (found := self.runs.latest(self.base_key)) is None:
            raise LookupError(f"{self.runs.file} has no result of the base {self.base} itself")
        return found

    def untrained(self) -> Row:
        """The base as it is, whose context ends at ``length``; measured where it was not with this code."""
        return self.runs.once(self.base_key, self._as_it_is)

    def trained(self, arm: Arm, tokens: int, seed: int) -> Row:
        """One cell; trained and measured where it was not with this code."""
        return self.runs.once(self.key(arm, tokens, seed), lambda: self._train(arm, tokens, seed))

    def _as_it_is(self) -> Row:
        measured = {
            name: self._measured(self.plain, part, LENGTHS[:1], False, 0) for name, part in self.parts(0).items()
        }
        return {"parameters": self.plain.num_parameters(), "parts": measured}

    def _train(self, arm: Arm, tokens: int, seed: int) -> Row:
        settings, corpus, parts = self.settings(arm, tokens, seed), self.corpus(seed), self.parts(seed)
        if arm.records:
            corpus, parts = with_records(corpus), {name: with_records(part) for name, part in parts.items()}
        torch.manual_seed(seed)
        lora = lora_config(self.plain, arm.rank, 2 * arm.rank, target_modules=arm.targets)
        config = TpttConfig(base_model_name=self.base, lora_config=lora, max_self_attn_length=self.window, **arm.config)
        model = begin_conversion(config, corpus, settings, self.length, dtype=torch.float32).model
        if arm.change is not None:
            arm.change(model)
        history = train(model, corpus, settings, self.length)
        parts = {name: part for name, part in parts.items() if name in arm.parts}
        found: Row = {
            "parts": {x: self._measured(model, part, LENGTHS, arm.cached, seed) for x, part in parts.items()},
            "train_seconds": next(x["train_runtime"] for x in reversed(history) if "train_runtime" in x),
            "loss": [(x["step"], round(x["loss"], 4)) for x in history if "loss" in x],
        }
        if arm.change is None:
            last = parts[next(x for x in reversed(PARTS) if x in parts)]  # the test part, where it is measured
            found |= self._branches(model, last, seed)
            found["widths"] = [m.key_features.width for m in memories(model)]
        return found

    def _measured(self, model, corpus: Corpus, lengths: tuple[int, ...], generates: bool, seed: int) -> Row:
        """All by length, as a multiple of the training length, and by format; records have no other."""
        n, records = self.length, isinstance(corpus, RecordCorpus)
        measured = ("all",) if records else FORMATS
        found: Row = {"perplexity": {}, "recall": {}, "inside": {}, "by_distance": {}, "generated": {}}
        for times in lengths:
            found["perplexity"][times] = perplexity(model, corpus.text(times * n, self.effort.text))
            every = tuple(ALL_FORMATS) if times == 1 and not records else measured
            least = self.effort.answers if times == 1 else self._each(measured)
            scores = {
                f: recall_until(model, corpus.recall(f, _FACTS), times * n, self.window, seed, least) for f in every
            }
            found["recall"][times] = {f: s.beyond.written for f, s in scores.items()}
            found["inside"][times] = {f: s.inside.written for f, s in scores.items()}
            found["by_distance"][times] = {f: scores[f].by_distance for f in measured}
        longest = lengths[-1] * n
        bounds = [n // 8 * 2**i for i in range(20) if n // 8 * 2**i <= longest]
        same = corpus.text(LENGTHS[-1] * n, self.effort.text)[
            :, :longest
        ]  # of the base as well, which reads no further
        found["by_position"] = perplexity_by_position(model, same, bounds)
        for f in measured if generates else ():
            recall = corpus.recall(f, _FACTS)
            found["generated"][f] = generated_until(model, recall, n, self.window, seed, self._each(measured)).written
        return found

    def _each(self, formats: Iterable[str]) -> int:
        """Answers of each of ``formats``, of which one may be held out of training and of the cell's mean."""
        return math.ceil(self.effort.answers / max(1, len(tuple(formats)) - 1))

    def _branches(self, model, corpus: Corpus, seed: int) -> Row:
        """Recall at the training length with both branches and with either, and mean mu by layer."""
        counts: dict[str, list[int]] = {}
        for number in draws_of(seed):
            use = branch_use(model, corpus.recall(), self.length, self.window, _ROWS, number)
            for name, score in use.recall.items():
                total = counts.setdefault(name, [0, 0])
                total[:] = [a + b for a, b in zip(total, beyond_counts(score), strict=True)]
            if min(n for _, n in counts.values()) >= self.effort.answers:
                break
        shares = {name: Share.of(*total).written for name, total in counts.items()}
        return {"branches": shares, "mu": [round(x.mu, 3) for x in use.layers]}
