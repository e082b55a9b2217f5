"""Looks at what the branches do while a model trains, and says when the memory is bypassed or harmful."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from tptt.evaluation import BranchUse, LayerUse, RecallScore, branch_use
from tptt.processes import agreed, is_first

from .corpus import Corpus
from .settings import TrainingSettings

logger = logging.getLogger("tptt")

_ROWS = 8
# judged from here on: earlier a memory has had no time to learn
_SETTLED = 0.4
# recall beyond the window with which nothing is missing: layers that keep their whole context may leave the memory nothing to do
_ENOUGH = 0.95


@dataclass(frozen=True)
class ProbeResult:
    """What a look after ``step`` optimizer steps found."""

    step: int
    use: BranchUse

    def logs(self) -> dict[str, float]:
        """Numbers for Trainer's logs."""
        found: dict[str, float] = {}
        for arm, score in self.use.recall.items():
            found[f"recall_beyond/{arm.replace(' ', '_')}"] = round(score.beyond or 0.0, 4)
        for arm, value in self.use.perplexity.items():
            if value is not None:
                found[f"perplexity/{arm.replace(' ', '_')}"] = round(value, 3)
        for i, layer in enumerate(self.use.layers):
            found[f"mu/{i}"] = round(layer.mu, 4)
            if layer.scale is not None:
                found[f"scale/{i}"] = round(layer.scale, 3)
        return found

    @classmethod
    def from_logs(cls, logs: Mapping[str, Any], length: int, window: int) -> ProbeResult | None:
        """The look that gave these `logs` of a ``step``; None for other logs."""
        if "recall_beyond/both" not in logs:
            return None
        arms = [k.partition("/")[2] for k in logs if k.startswith("recall_beyond/")]
        recall = {
            arm.replace("_", " "): RecallScore(length, window, None, logs[f"recall_beyond/{arm}"], 0, 0, {}) for arm in arms
        }  # fmt: skip
        perplexity = {arm.replace("_", " "): logs.get(f"perplexity/{arm}") for arm in arms}
        count = sum(k.startswith("mu/") for k in logs)
        layers = tuple(LayerUse(logs[f"mu/{i}"], logs.get(f"scale/{i}")) for i in range(count))
        return cls(logs["step"], BranchUse(layers, recall, perplexity))


def diverged(use: BranchUse) -> bool:
    """Whether the model computes numbers no longer."""
    both = use.perplexity["both"]
    return not all(map(math.isfinite, (*(layer.mu for layer in use.layers), 0.0 if both is None else both)))


def diagnose(use: BranchUse) -> list[str]:
    """What is wrong with the branches of a model that has trained for a while, and what to do; nothing where all is well."""
    if diverged(use):
        return [
            "the training diverged: the model's predictions are no finite numbers. Lower learning_rate and memory_learning_rate, train anew"
        ]
    said: list[str] = []
    if "window only" not in use.recall:  # no layer has a softmax to compare with
        return said
    both, window = (use.recall[arm].beyond for arm in ("both", "window only"))
    mean_mu = sum(layer.mu for layer in use.layers) / len(use.layers)
    if both is not None and window is not None and both < min(window + 0.05, _ENOUGH):
        said.append(
            f"the memory is bypassed: recall beyond the window is {both:.2f} with it and {window:.2f} without (mean mu "
            f"{mean_mu:.3f}). Let the data need it (recall_share of .3 or more, answer_weight of 5; on text alone "
            "long_context_weight of 1), raise memory_learning_rate, or train longer; a narrower window leaves it more to do"
        )
    with_memory, without = (use.perplexity[arm] for arm in ("both", "window only"))
    if with_memory is not None and without is not None and with_memory > 1.02 * without:
        said.append(
            f"the memory is harmful to the text: perplexity {with_memory:.2f} with it, {without:.2f} with the window alone. "
            "Lower memory_learning_rate or recall_share, or let mu rise slowly (mag_weight_start=0.01)"
        )
    loud = [i for i, layer in enumerate(use.layers) if layer.scale is not None and not 0.05 < layer.scale < 20]
    if loud:
        said.append(
            f"the memory's output is of another size than the softmax's in layers {loud}: tptt.calibrate(model, ids) on real "
            "text before training sets it"
        )
    return said


class BranchProbe(TrainerCallback):
    """Every ``every`` optimizer steps and at the end: recall beyond the window and perplexity with both branches, with the
    window alone and with the memory alone, mu and size of the memory by layer.

    The numbers stand in ``trainer.state.log_history``, the looks in ``looks``; what is wrong is logged as a warning of
    the logger "tptt" and kept in ``warnings``.

    Args:
        model: the converted model.
        corpus: whose held-out part is asked.
        length: tokens of a row that is asked.
        window: W.
        every: optimizer steps; 0 looks at the end only.
        stop_at: training ends at the first look that finds recall beyond the window of this or more.
        formats: of the recall rows.
    """

    def __init__(
        self, model: nn.Module, corpus: Corpus, length: int, window: int, every: int = 100,
        stop_at: float | None = None, formats: str | Sequence[str] = "all",
    ) -> None:  # fmt: skip
        self.model, self.length, self.window, self.every, self.stop_at = model, length, window, every, stop_at
        self.recall = corpus.recall(formats)
        self.text: torch.Tensor = corpus.text(length, 4 * length)
        self.probe_results: list[ProbeResult] = []
        self.warnings: list[str] = []

    @classmethod
    def of(cls, model, corpus: Corpus, settings: TrainingSettings, length: int) -> BranchProbe:
        """The probe that ``settings`` ask for; ``model`` is a TpttModel, ``length`` tokens of a row that is asked."""
        window = model.config.max_self_attn_length or 0
        every, stop_at, formats = settings.probe_steps, settings.stop_at_recall, settings.recall_formats
        return cls(model, corpus, length, window, every, stop_at, formats)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """A resumed run has looked before: its checkpoint's history says what was seen."""
        before = [ProbeResult.from_logs(x, self.length, self.window) for x in state.log_history]
        if looks := [x for x in before if x is not None]:
            self.probe_results = looks
        for look in looks:
            self._judge(look, state, told=True)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        step = state.global_step
        if not (self.every and step % self.every == 0) and step < state.max_steps:
            return
        self._look(state)
        if self.stop_at is not None and agreed(
            (self.probe_results[-1].use.recall["both"].beyond or 0.0) >= self.stop_at
        ):
            control.should_training_stop = True

    def _look(self, state) -> None:
        use = branch_use(self.model, self.recall, self.length, self.window, _ROWS, text=self.text)
        self.probe_results.append(ProbeResult(state.global_step, use))
        state.log_history.append(self.probe_results[-1].logs() | {"step": state.global_step})
        self._judge(self.probe_results[-1], state)

    def _judge(self, look: ProbeResult, state, told: bool = False) -> None:
        settled = look.step >= _SETTLED * state.max_steps
        for text in diagnose(look.use) if settled or diverged(look.use) else ():
            if text.partition(":")[0] not in {w.partition(":")[0] for w in self.warnings}:
                if is_first() and not told:
                    logger.warning(text)
                self.warnings.append(text)
