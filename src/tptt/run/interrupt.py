"""Ctrl-C during training: a checkpoint first, then the end."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from transformers import TrainerCallback


class SaveOnInterrupt(TrainerCallback):
    """Within its ``with`` block the first Ctrl-C in a training saves a checkpoint after the current step and ends with
    KeyboardInterrupt; a second one ends at once.

    For one process: several get the signal at different steps, and would wait for each other.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: Any = None

    def __enter__(self) -> SaveOnInterrupt:
        return self

    def __exit__(self, *exception) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        # in another than the main thread Python takes no handlers; a run in the background ignores the signal, and goes on
        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        )
        if args.world_size == 1 and ours:
            self.before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number, frame) -> None:
        self.asked = True
        self.__exit__()
        print("\nstopping: saves a checkpoint after this step; Ctrl-C again stops at once", file=sys.stderr)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.asked and state.global_step < state.max_steps:
            raise KeyboardInterrupt(f"saved after step {state.global_step} of {state.max_steps}")
