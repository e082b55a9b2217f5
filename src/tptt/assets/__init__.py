"""What ships with the package: a small base model, and the measured curves that a dry run's expectations come from."""

from importlib.resources import files
from pathlib import Path

_FOLDER = Path(str(files(__name__)))
BASE = _FOLDER / "base"
"""Folder of the embedded base (`tools/train_base` made it)."""


def shipped_curves() -> list[Path]:
    """Files of measured curves, one for each base that `benchmarks.conversion` has measured."""
    return sorted(_FOLDER.glob("curves*.json"))
