"""What a conversion says while it trains, kept as JSON lines: when it began, each look at its branches, its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.record import provenance

from .conversions import Conversion
from .lines import append, complete_lines
from .place import RESULTS

KIND = "real_convert"
"""Of `benchmarks.record.SOURCES`: the code that a conversion depends on."""
_A_LOOK = "recall_beyond/both"
_DIGITS = 6


def looks_file(base: str, results: Path = RESULTS) -> Path:
    """Where the looks at all conversions of a base are kept: apart from the answers of its arms."""
    return results / base / "conversions" / "looks.jsonl"


class KeepLooks(TrainerCallback):
    """Adds a line to ``file`` for each event of a conversion.

    A run that was stopped begins again: ``run`` counts up with each beginning, and seconds count from it. A look that
    is there already, because the run went on from a checkpoint before it, is not written again.

    Args:
        conversion: Of which the lines speak.
        file: JSON lines.
    """

    def __init__(self, conversion: Conversion, file: Path) -> None:
        self.conversion, self.file = conversion, file
        self.begun = time.monotonic()
        before = [x for x in read_looks(file) if x["name"] == conversion.name]
        self.run = 1 + max((x["run"] for x in before), default=0)
        self.steps = {x["step"] for x in before if x["event"] == "look"}
        self.where = provenance(KIND)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.write("training begins", state.global_step, max_steps=state.max_steps)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        last = state.log_history[-1] if state.log_history else {}
        if _A_LOOK in last and last["step"] == state.global_step and state.global_step not in self.steps:
            self.steps.add(state.global_step)
            self.write("look", state.global_step, found={k: v for k, v in last.items() if k not in ("step", "epoch")})

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self.write("loss", state.global_step, loss=round(logs["loss"], _DIGITS))

    def write(self, event: str, step: int, **more: Any) -> None:
        """Add a line."""
        line = {
            "base": self.conversion.base.name,
            "name": self.conversion.name,
            "recipe": self.conversion.recipe,
            "tokens": self.conversion.tokens,
            "seed": self.conversion.seed,
            "run": self.run,
            "event": event,
            "step": step,
            "seconds": round(time.monotonic() - self.begun, 1),
            **more,
            "where": self.where,
        }
        append(self.file, line)


def read_looks(file: Path) -> list[dict[str, Any]]:
    """All lines of ``file``; none where there is no file.

    Raises:
        ValueError: A line is not JSON; the message names file and line.
    """
    found = []
    for number, line in enumerate(complete_lines(file), 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error})") from error
    return found
