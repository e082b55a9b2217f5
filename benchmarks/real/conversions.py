"""What the convert command can make of a base: named recipes, as changes of a run's options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tptt.run.options import RunOptions

from .bases import Base
from .place import TRAIN

SAVE_STEPS = 16
"""Optimizer steps between two checkpoints: what a run that is killed loses at most."""
ROW = 512
"""Tokens of a training row."""
LOOKS = 4
"""Looks at the branches during a training, the last one after its last step."""
_WINDOW_ALONE = {"mag_weight": 0.0, "mix_gate": "none", "feature_width": 2, "write_gate": "constant"}
"""A memory of no size that is mixed in with weight 0."""
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "window": {**_WINDOW_ALONE, "allocate_widths": False, "write_gate_weight": 0.0},
}
"""Keys of a run file that differ from the defaults. ``window``: LoRA learns to do with the window alone, on the same
rows in the same order."""


@dataclass(frozen=True)
class Conversion:
    """A base converted by a recipe.

    Args:
        base: What is converted.
        recipe: A name in `RECIPES`.
        tokens: Of the training.
        seed: Of rows, LoRA's start and dropout.

    Raises:
        ValueError: There is no such recipe; the message lists the names.
    """

    base: Base
    recipe: str
    tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"there is no recipe {self.recipe!r}; valid are {', '.join(RECIPES)}")

    @property
    def name(self) -> str:
        """By which its folder and its results are called, such as default-65k or default-65k-seed1."""
        tokens = f"{self.tokens // 1024}k" if self.tokens % 1024 == 0 else str(self.tokens)
        return f"{self.recipe}-{tokens}" + (f"-seed{self.seed}" if self.seed else "")

    def folder(self, prepared: Path) -> Path:
        """Where the model is, in the prepared folder."""
        return prepared / "models" / self.base.name / self.name

    def options(self, prepared: Path) -> RunOptions:
        """The run that makes it."""
        row = min(ROW, self.base.context)
        options = RunOptions.from_flat(
            {
                "base_model": str(self.base.folder(prepared) / self.base.gguf.file),
                "data": str(prepared / TRAIN),
                "output_dir": str(self.folder(prepared)),
                "dtype": "float32",
                "tokens": self.tokens,
                "seq_len": row,
                "seed": self.seed,
                "save_steps": SAVE_STEPS,
                **RECIPES[self.recipe],
            }
        )
        return options.changed(probe_steps=max(1, options.training.steps(row) // LOOKS))
