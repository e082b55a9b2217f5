"""A training run's progress: a bar, and a line for each look at the branches."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback


class ShowProgress(TrainerCallback):
    """A Trainer callback that shows where the training is while the ``with`` block lasts.

    Args:
        console: to write to; a bar only on a terminal.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task: TaskID | None = None
        self.console = console

    def __enter__(self) -> ShowProgress:
        self.bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self.bar.stop()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.task = self.bar.add_task("train", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.task is not None:
            self.bar.update(self.task, completed=state.global_step)
        last = state.log_history[-1] if state.log_history else {}
        if "recall_beyond/both" in last and last["step"] == state.global_step:
            told = [f"{k.replace('/', ', ').replace('_', ' ')} {v:g}" for k, v in last.items() if "/" in k]
            shown = [x for x in told if x.startswith(("recall", "perplexity"))]
            self.console.print(f"  step {state.global_step:>6}: {'; '.join(shown)}", soft_wrap=True)
