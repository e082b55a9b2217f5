"""Figures as PNG files, without a display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(panels: int) -> tuple[Figure, list]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(5 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no global state, unlike pyplot
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
