"""How far a training run is: its steps as a stage of `tptt.progress`, a line for a loss now and then and for each probe."""

from __future__ import annotations

import time
from contextlib import ExitStack

from transformers import TrainerCallback

from tptt.processes import is_first
from tptt.progress import EVERY, Progress, report_progress

from .console import say


class ShowProgress(TrainerCallback):
    """A Trainer callback that shows where the training is while the ``with`` block lasts.

    The losses of the first and the last log are printed, and one about every `tptt.progress.EVERY` seconds.
    """

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.stage: Progress | None = None
        self.done = 0  # steps that the stage knows of
        self.due = 0.0

    def __enter__(self) -> ShowProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()
        self.stage = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.stage = self.stack.enter_context(report_progress("train", state.max_steps))
        self._advance(state)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._advance(state)
        last = state.log_history[-1] if state.log_history else {}
        if "recall_beyond/both" in last and last["step"] == state.global_step and is_first():
            told = [f"{k.replace('/', ', ').replace('_', ' ')} {v:g}" for k, v in last.items() if "/" in k]
            shown = [x for x in told if x.startswith(("recall", "perplexity"))]
            say(f"  step {state.global_step:>6}: {'; '.join(shown)}")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        now, last = time.monotonic(), state.global_step >= state.max_steps
        if logs is not None and "loss" in logs and (now >= self.due or last) and is_first():
            say(f"  step {state.global_step:>6}: loss {float(logs['loss']):.4f}")
            self.due = now + EVERY

    def _advance(self, state) -> None:
        if self.stage is not None:
            self.stage.advance(state.global_step - self.done)
            self.done = state.global_step
