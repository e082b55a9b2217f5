"""What a quickstart run is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LONGEST = 512  # tokens of a training row where the base could read more


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
        ramp: steps over which mu goes from 0.01 to 0.5; at most ``steps``.
        eval_rows: recall rows per length; text gets about 1.5 as many rows of ``length`` tokens.
        facts: facts of a measured recall row.

    Raises:
        ValueError: a number is below 1, or the window is not shorter than the row.
    """

    out: Path
    base_model: str | None = None
    data: str | None = None
    window: int | None = None
    length: int | None = None
    steps: int = 640
    rows: int = 4
    ramp: int = 100
    seed: int = 0
    threads: int | None = None
    eval_rows: int = 32
    facts: int = 16

    def __post_init__(self) -> None:
        for name in ("window", "length", "steps", "rows", "ramp", "threads", "eval_rows", "facts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}")

    def sizes(self, context: int | None) -> tuple[int, int]:
        """``(length, window)`` for a base that reads ``context`` tokens (None: no limit known)."""
        length = self.length or min(context or LONGEST, LONGEST)
        window = self.window or max(1, length // 8)
        if length < 16:
            raise ValueError(f"--length must be 16 or more, got {length}")
        if window >= length:
            raise ValueError(f"--window must be less than the row's {length} tokens, got {window}")
        return length, window


def check_output(out: Path) -> None:
    """Raises ValueError where ``out`` is a file or a folder with something in it."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"output folder {out} is not empty: name another one, or remove it first")
