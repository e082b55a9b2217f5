"""What a probe of a model's branches found, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tptt.evaluation import BranchUse, LayerUse, RecallScore

_ENOUGH_RECALL = 0.95
"""Recall beyond the window that lacks nothing: layers with their whole context may leave the memory nothing to do."""


@dataclass(frozen=True)
class ProbeResult:
    """Recall, perplexity and the layers' mu after ``step`` optimizer steps."""

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
        """The result that gave these `logs` of a ``step``; None for other logs."""
        if "recall_beyond/both" not in logs:
            return None
        arms = [k.partition("/")[2] for k in logs if k.startswith("recall_beyond/")]
        recall = {
            arm.replace("_", " "): RecallScore(length, window, None, logs[f"recall_beyond/{arm}"], 0, 0, {})
            for arm in arms
        }
        perplexity = {arm.replace("_", " "): logs.get(f"perplexity/{arm}") for arm in arms}
        count = sum(k.startswith("mu/") for k in logs)
        layers = tuple(LayerUse(logs[f"mu/{i}"], logs.get(f"scale/{i}")) for i in range(count))
        return cls(logs["step"], BranchUse(layers, recall, perplexity))


def diverged(use: BranchUse) -> bool:
    """Whether the model's predictions are no finite numbers any more."""
    both = use.perplexity["both"]
    return not all(map(math.isfinite, (*(layer.mu for layer in use.layers), 0.0 if both is None else both)))


def diagnose(use: BranchUse) -> list[str]:
    """What is wrong with the branches of a model that has trained for a while, and what to do. Empty: all is well."""
    if diverged(use):
        return [
            "the training diverged: the model's predictions are no finite numbers. Lower learning_rate and "
            "memory_learning_rate, train anew"
        ]
    said: list[str] = []
    if "window only" not in use.recall:  # no layer has a softmax to compare with
        return said
    both, window = (use.recall[arm].beyond for arm in ("both", "window only"))
    mean_mu = sum(layer.mu for layer in use.layers) / len(use.layers)
    if both is not None and window is not None and both < min(window + 0.05, _ENOUGH_RECALL):
        said.append(
            f"the memory is bypassed: recall beyond the window is {both:.2f} with it and {window:.2f} without (mean mu "
            f"{mean_mu:.3f}). Let the data need it (recall_share of .3 or more, answer_weight of 5; on text alone "
            "long_context_weight of 1), raise memory_learning_rate, or train longer; a narrower window leaves it more "
            "to do"
        )
    with_memory, without = (use.perplexity[arm] for arm in ("both", "window only"))
    if with_memory is not None and without is not None and with_memory > 1.02 * without:
        said.append(
            f"the memory is harmful to the text: perplexity {with_memory:.2f} with it, {without:.2f} with the window "
            "alone. Lower memory_learning_rate or recall_share, or let mu rise slowly (mag_weight_start=0.01)"
        )
    loud = [i for i, layer in enumerate(use.layers) if layer.scale is not None and not 0.05 < layer.scale < 20]
    if loud:
        said.append(
            f"the memory's output is of another size than the softmax's in layers {loud}: tptt.calibrate(model, ids) "
            "on real text before training sets it"
        )
    return said
