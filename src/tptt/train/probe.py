"""Probes of what the branches do while a model trains, which say when the memory is bypassed or harmful."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import TrainerCallback

from tptt.evaluation import branch_use
from tptt.processes import agreed, is_first
from tptt.progress import report_progress

from .corpus import Corpus
from .probe_result import ProbeResult, diagnose, diverged
from .settings import TrainingSettings

logger = logging.getLogger("tptt")

_ROWS = 8
"""Recall rows of a probe."""
_SETTLED = 0.4
"""Share of the training after which a memory is judged: earlier it has had no time to learn."""


class BranchProbe(TrainerCallback):
    """Probes every ``probe_steps`` optimizer steps and after the last one: recall beyond the window and perplexity with
    both branches, with the window alone and with the memory alone; mu and size of the memory by layer.

    The numbers stand in ``trainer.state.log_history`` and in ``probe_results``; what is wrong is logged as a warning of
    the logger "tptt" and kept in ``warnings``.

    Args:
        model: the converted model.
        corpus: whose held-out part is asked.
        length: tokens of a row that is asked.
        window: W; 0: there is none.
        probe_steps: optimizer steps between two probes; 0 probes after the last step alone.
        stop_at_recall: training ends at the first probe that finds recall beyond the window of this or more.
        formats: of the recall rows.
    """

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        length: int,
        window: int,
        probe_steps: int = 100,
        stop_at_recall: float | None = None,
        formats: str | Sequence[str] = "all",
    ) -> None:
        self.model, self.length, self.window = model, length, window
        self.probe_steps, self.stop_at_recall = probe_steps, stop_at_recall
        self.recall = corpus.recall(formats)
        self.text: torch.Tensor = corpus.text(length, 4 * length)
        self.probe_results: list[ProbeResult] = []
        self.warnings: list[str] = []

    @classmethod
    def of(cls, model, corpus: Corpus, settings: TrainingSettings, length: int) -> BranchProbe:
        """The probe that ``settings`` ask for; ``model`` is a TpttModel, ``length`` tokens of a row that is asked.

        Raises:
            ValueError: ``settings`` ask for none.
        """
        if settings.probe_steps is None:
            raise ValueError("probe_steps=None asks for no probe: set 0 for one after the last step")
        window = model.config.max_self_attn_length or 0
        return cls(
            model, corpus, length, window, settings.probe_steps, settings.stop_at_recall, settings.recall_formats
        )

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Read back what a resumed run has found before: its checkpoint's history says it."""
        before = [ProbeResult.from_logs(x, self.length, self.window) for x in state.log_history]
        if found := [x for x in before if x is not None]:
            self.probe_results = found
        for result in found:
            self._judge(result, state, was_told=True)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        step = state.global_step
        if not (self.probe_steps and step % self.probe_steps == 0) and step < state.max_steps:
            return
        self._probe(state)
        recall = self.probe_results[-1].use.recall["both"].beyond or 0.0
        if self.stop_at_recall is not None and agreed(recall >= self.stop_at_recall):
            control.should_training_stop = True

    def _probe(self, state) -> None:
        with report_progress(f"probing recall and perplexity after step {state.global_step}"):
            use = branch_use(self.model, self.recall, self.length, self.window, _ROWS, text=self.text)
        self.probe_results.append(ProbeResult(state.global_step, use))
        state.log_history.append(self.probe_results[-1].logs() | {"step": state.global_step})
        self._judge(self.probe_results[-1], state)

    def _judge(self, result: ProbeResult, state, was_told: bool = False) -> None:
        settled = result.step >= _SETTLED * state.max_steps
        for text in diagnose(result.use) if settled or diverged(result.use) else ():
            if text.partition(":")[0] not in {w.partition(":")[0] for w in self.warnings}:
                if is_first() and not was_told:
                    logger.warning(text)
                self.warnings.append(text)
