"""Where the bench of real models keeps its files, and how its commands speak."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "runs" / "real"
"""The prepared folder, by default. Nothing in it is committed."""
RESULTS = Path(__file__).parent / "results"
"""Answers, looks and text tables; they are committed."""
TRAIN = Path("text") / "train.txt"
"""In the prepared folder, the text that conversions are trained on."""


def say(text: str) -> None:
    """Print a line at once, also where the output is a file."""
    print(text, flush=True)
