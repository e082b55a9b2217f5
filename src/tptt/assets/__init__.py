"""Files that ship with the package: the small base model, and what was measured of conversions."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
CURVES = Path(__file__).parent / "curves.json"
"""Recall and perplexity by tokens trained on, of the embedded base; ``curves-NAME.json`` beside it are of other bases."""


def curve_files() -> list[Path]:
    """The files of measured curves, as `tptt.estimate.expectations` reads them."""
    return sorted(CURVES.parent.glob(f"{CURVES.stem}*.json"))
