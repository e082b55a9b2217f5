"""What a quickstart run is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tptt.train import TrainingSettings
from tptt.train.base import row_length


@dataclass(frozen=True)
class QuickstartOptions:
    """Options of `tptt quickstart`.

    Args:
        output_dir: folder to write; must be empty or not exist.
        base_model: path or hub id of a causal LM; None is the embedded one.
        trust_remote_code: let code that comes with the base run.
        data: text file, folder, table or data set; None is the running Python's documentation and sources.
        window: W in tokens; None is an eighth of a row.
        seq_len: tokens of a training row; None is the base's context, 512 at most.
        steps: optimizer steps of `TrainingSettings.per_device_train_batch_size` rows.
        seed: of all that is drawn.
        threads: of the CPU; None leaves torch's choice.
        eval_rows: recall rows per length; perplexity is taken on 1.5 times as many rows of text, recall of one format
            on half as many.

    Raises:
        ValueError: a number is below 1, or the window is not shorter than the row.
    """

    output_dir: Path
    base_model: str | None = None
    trust_remote_code: bool = False
    data: str | None = None
    window: int | None = None
    seq_len: int | None = None
    steps: int = 512
    seed: int = TrainingSettings.seed
    threads: int | None = None
    eval_rows: int = 32

    def __post_init__(self) -> None:
        for name in ("window", "seq_len", "steps", "threads", "eval_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")

    def sizes(self, base_config) -> tuple[int, int]:
        """``(seq_len, window)`` for the base of that configuration."""
        seq_len = row_length(TrainingSettings(seq_len=self.seq_len), base_config)
        window = self.window or max(1, seq_len // 8)
        if window >= seq_len:
            raise ValueError(f"--window must be less than the row's {seq_len} tokens, got {window}")
        return seq_len, window

    def settings(self, seq_len: int) -> TrainingSettings:
        """How the window alone and the converted model are trained: the default recipe, for ``steps`` steps."""
        tokens = self.steps * TrainingSettings().tokens_per_step(seq_len)
        return TrainingSettings(tokens=tokens, seq_len=seq_len, seed=self.seed)


def check_output(output_dir: Path) -> None:
    """Raises ValueError where ``output_dir`` is a file or a folder with something in it."""
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        raise ValueError(f"output folder {output_dir} is not empty: name another one, or remove it first")
