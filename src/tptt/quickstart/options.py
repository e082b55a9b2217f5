"""What a quickstart run is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tptt.train import TrainingSettings
from tptt.train.base import row_length

from .records import FACTS


@dataclass(frozen=True)
class QuickstartOptions:
    """Options of `tptt quickstart`.

    Args:
        out: folder to write; must be empty or not exist.
        base_model: path or hub id of a causal LM; None is the embedded one.
        data: text file, folder, table or data set; None is the running Python's documentation and sources.
        window: W in tokens; None is an eighth of ``length``.
        length: tokens of a training row; None is the base's context, 512 at most.
        steps, rows: optimizer steps and rows per step.
        seed: of all that is drawn.
        threads: of the CPU; None leaves torch's choice.
        eval_rows: recall rows per length; text gets about 1.5 as many rows of ``length`` tokens. Formats one by one get
            half as many rows.

    Raises:
        ValueError: a number is below 1, or the window is not shorter than the row.
    """

    out: Path
    base_model: str | None = None
    data: str | None = None
    window: int | None = None
    length: int | None = None
    steps: int = 512
    rows: int = TrainingSettings.per_device_train_batch_size
    seed: int = TrainingSettings.seed
    threads: int | None = None
    eval_rows: int = 32

    def __post_init__(self) -> None:
        for name in ("window", "length", "steps", "rows", "threads", "eval_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")

    def sizes(self, base_config) -> tuple[int, int]:
        """``(length, window)`` for the base of that configuration."""
        length = row_length(TrainingSettings(seq_len=self.length), base_config)
        window = self.window or max(1, length // 8)
        if window >= length:
            raise ValueError(f"--window must be less than the row's {length} tokens, got {window}")
        return length, window

    def settings(self, length: int) -> TrainingSettings:
        """How both arms are trained, with rows of ``length`` tokens: the defaults, for ``steps`` steps of ``rows`` rows.

        mu rises as in the workflow of TPTT; the recall rows are records.
        """
        recipe = TrainingSettings()
        tokens = self.steps * self.rows * recipe.gradient_accumulation_steps * recipe.tbptt_chunks * length
        return TrainingSettings(
            tokens=tokens,
            seq_len=length,
            per_device_train_batch_size=self.rows,
            seed=self.seed,
            facts=FACTS,
            mag_weight_start=0.01,
        )


def check_output(out: Path) -> None:
    """Raises ValueError where ``out`` is a file or a folder with something in it."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"output folder {out} is not empty: name another one, or remove it first")
