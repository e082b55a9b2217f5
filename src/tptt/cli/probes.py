"""What a training run shows beside its progress: a line for each probe."""

from __future__ import annotations

from transformers import TrainerCallback

from tptt.processes import is_first

from .console import say


class ShowProbes(TrainerCallback):
    """A Trainer callback that prints what a probe (`tptt.train.BranchProbe`, which must stand before it) has found."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        last = state.log_history[-1] if state.log_history else {}
        if "recall_beyond/both" in last and last["step"] == state.global_step and is_first():
            told = [f"{k.replace('/', ', ').replace('_', ' ')} {v:g}" for k, v in last.items() if "/" in k]
            shown = [x for x in told if x.startswith(("recall", "perplexity"))]
            say(f"  step {state.global_step:>6}: {'; '.join(shown)}")
