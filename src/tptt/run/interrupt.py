"""Signals that end a training early: a checkpoint first, then the end.

Trainer's own ``enable_jit_checkpoint`` is not used: it knows SIGTERM alone, waits three seconds before it acts, returns
from `Trainer.train` as if the training were complete, and lets every process of a run save at a step of its own.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from transformers import TrainerCallback

from tptt.processes import any_of, is_first

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Ctrl-C; what Slurm, Kubernetes and spot machines send before they end a job; what a Slurm job asks for by
``--signal=USR1@120``, to be requeued."""


_STOPPING = "stopping: a checkpoint is saved after this step; the same signal again stops at once"


class Interrupted(KeyboardInterrupt):
    """A signal has ended the training; a checkpoint is saved.

    Args:
        number: of the signal.
        step, steps: optimizer steps done, and of the whole training.
    """

    def __init__(self, number: int, step: int, steps: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: saved after step {step} of {steps}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that a signal has ended: 128 and its number."""
        return 128 + self.number


class SaveOnSignal(TrainerCallback):
    """Within its ``with`` block a signal of `SIGNALS` during training saves a checkpoint after the current step and
    raises `Interrupted`; a second signal ends the process at once.

    Where several processes train, all of them save and end after the same step, whichever of them got the signal.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number
        self.before: dict[int, Any] = {}

    def __enter__(self) -> SaveOnSignal:
        return self

    def __exit__(self, *exception: object) -> None:
        while self.before:
            signal.signal(*self.before.popitem())

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # there Python takes no handlers
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as Ctrl-C is by a process in the background
                self.before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = number
        self.__exit__()
        if is_first():
            with suppress(RuntimeError):  # the signal came while stderr was written to
                print(f"\n{_STOPPING}", file=sys.stderr)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.world_size > 1:
            self.asked = any_of(self.asked)
        if self.asked is not None:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.asked is not None and state.global_step < state.max_steps:
            raise Interrupted(self.asked, state.global_step, state.max_steps)
