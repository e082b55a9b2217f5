"""The plots of the bench. Colours are those of Okabe and Ito without the yellow, which white swallows; every arm has a
marker of its own as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.plots import new_figure, save
from tptt.evaluation import CacheFormula

from .cache_bytes import LENGTHS
from .perplexity import BOUNDS, TABLE, TASK
from .plan import EQUAL_BYTES_LENGTHS, RULER_ROWS
from .tables import AtBytes, Figure, Lines, cell, nats_of, ruler_figure

_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = "osD^vPX*<>ph"


def style(number: int) -> dict[str, Any]:
    """Colour and marker of the arm of that number; no two of the first 84 share both."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def by_name(arms: Mapping[str, Lines]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each arm. Shares of one press have the colour of the press."""
    kinds = list(dict.fromkeys(name.partition("@")[0] for name in arms))
    return {name: style(kinds.index(name.partition("@")[0])) for name in arms}


def plot_ruler(arms: Mapping[str, Lines], file: Path) -> Path | None:
    """RULER's mean by length; None: no arm has answered all tasks of a length."""
    series = {name: [(n, f) for n in RULER_ROWS if (f := ruler_figure(lines, n))] for name, lines in arms.items()}
    return _curves(series, file, "length in tokens", "mean score of RULER's tasks", "RULER by length", (-0.03, 1.03))


def plot_perplexity(arms: Mapping[str, Lines], file: Path) -> Path | None:
    """Nats per token of essays by position; None: nothing was measured."""
    series = {
        name: [(n, f) for n in BOUNDS if (f := Figure.of(cell(lines, TABLE, TASK, n), nats_of))]
        for name, lines in arms.items()
    }
    return _curves(series, file, "position in tokens (end of the span)", "nats per token", "Essays by position")


def _curves(
    series: Mapping[str, list[tuple[int, Figure]]],
    file: Path,
    x: str,
    y: str,
    title: str,
    limits: tuple[float, float] | None = None,
) -> Path | None:
    if not any(series.values()):
        return None
    figure, (axes,) = new_figure(1)
    styles = by_name({name: [] for name in series})
    for name, points in series.items():
        if points:
            errors = [f.error or 0.0 for _, f in points]
            axes.errorbar(
                [n for n, _ in points], [f.mean for _, f in points], errors, label=name, capsize=2, **styles[name]
            )
    axes.set(xlabel=x, ylabel=y, title=title, xscale="log")
    if limits:
        axes.set_ylim(*limits)
    _length_ticks(axes, sorted({n for points in series.values() for n, _ in points}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return save(figure, file)


def plot_equal_bytes(arms: Mapping[str, Lines], file: Path) -> Path | None:
    """Mean score of the four tasks against MB of cache when the question is asked; None: nothing was measured."""
    places = {n: {name: AtBytes.of(lines, n) for name, lines in arms.items()} for n in EQUAL_BYTES_LENGTHS}
    lengths = [n for n, found in places.items() if any(p.score and p.held for p in found.values())]
    if not lengths:
        return None
    figure, panels = new_figure(len(lengths))
    styles = by_name(arms)
    for axes, length in zip(panels, lengths, strict=True):
        for kind, points in _by_kind(places[length]).items():
            held, scores, errors = zip(*points, strict=True)
            axes.errorbar(held, scores, errors, label=kind, lw=1, **styles[_first(styles, kind)])
        axes.set(
            xlabel="MB of cache when the question is asked", ylabel="mean score of four tasks", xscale="log",
            title=f"{length:,} tokens", ylim=(-0.03, 1.03),
        )  # fmt: skip
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    known = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside right upper", fontsize=8)
    return save(figure, file)


def _by_kind(places: Mapping[str, AtBytes]) -> dict[str, list[tuple[float, float, float]]]:
    """(MB, score, error) of each arm that has them, small caches first; the shares of a press are one series."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for name, place in places.items():
        if place.score and place.held:
            point = (place.held.mean, place.score.mean, place.score.error or 0.0)
            found.setdefault(name.partition("@")[0], []).append(point)
    return {kind: sorted(points) for kind, points in found.items()}


def _first(names: Mapping[str, Any], kind: str) -> str:
    return next(name for name in names if name.partition("@")[0] == kind)


def plot_bytes(base: CacheFormula, converted: CacheFormula, arms: Mapping[str, Lines], file: Path) -> Path:
    """MB of cache by length: computed as lines, measured caches of all arms but the presses as points."""
    figure, (axes,) = new_figure(1)
    for label, formula, colour in (
        ("base, computed", base, _COLOURS[0]),
        ("default memory, computed", converted, _COLOURS[2]),
    ):
        axes.plot(LENGTHS, [formula.after(n).bytes / 1e6 for n in LENGTHS], label=label, color=colour)
    styles = by_name(arms)
    for name, lines in arms.items():
        points = {
            line["context_tokens"]: line["bytes_at_question"] / 1e6 for line in lines if line.get("context_tokens")
        }
        far = {n: mb for n, mb in points.items() if n >= LENGTHS[0] // 2}
        if far and "@" not in name:
            axes.plot(list(far), list(far.values()), ls="", ms=4, label=f"{name}, measured", **styles[name])
    axes.set(
        xlabel="length in tokens", ylabel="MB of cache (float32)", xscale="log", yscale="log", title="Bytes of cache"
    )
    _length_ticks(axes, LENGTHS)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return save(figure, file)


def _length_ticks(axes: Any, lengths: Any) -> None:
    axes.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
    axes.minorticks_off()
