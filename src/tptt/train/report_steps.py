"""How far a training is, and its loss, for a log."""

from __future__ import annotations

import logging
import time

from transformers import TrainerCallback

from tptt.processes import is_first
from tptt.progress import EVERY, Progress

logger = logging.getLogger("tptt.progress")
_clock = time.monotonic


class ReportSteps(TrainerCallback):
    """Advances ``progress`` by each optimizer step. The logger ``tptt.progress`` gets a line (level INFO) with the loss
    when training begins, every 30 seconds, and when it ends.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.due = _clock()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.progress.advance(state.global_step)  # a resumed run has done these before

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.progress.advance(1)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        if not logs or "loss" not in logs or not is_first() or (_clock() < self.due and not is_last):
            return
        self.due = _clock() + EVERY
        logger.info("training: step %d of %d: loss %.3f", state.global_step, state.max_steps, logs["loss"])
