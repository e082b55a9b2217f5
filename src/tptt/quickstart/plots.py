"""The plots of a run, as PNG files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .results import Results

COLORS = {"base": "#4c72b0", "window alone": "#dd8452", "converted": "#55a868"}


def new_figure(panels: int) -> tuple[Figure, list]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(5 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def plot_training(results: Results, path: Path) -> Path:
    """Training loss in nats of the trained arms, and mu of each layer at the looks, over steps."""
    figure, (loss, mu) = new_figure(2)
    for arm, history in results.histories.items():
        values = [x["loss"] for x in history]
        mean = [sum(values[max(0, i - 7) : i + 1]) / len(values[max(0, i - 7) : i + 1]) for i in range(len(values))]
        loss.plot([x["step"] for x in history], mean, label=arm, color=COLORS[arm])
    loss.set(xlabel="step", ylabel="loss in nats (mean of 8 steps)", title="training loss, recall weighted up")
    loss.legend()
    steps, layers = [result.step for result in results.probe_results], len(results.probe_results[0].use.layers)
    for i in range(layers):
        mu.plot(steps, [result.use.layers[i].mu for result in results.probe_results], marker="o", label=f"layer {i}")
    mu.set(xlabel="step", ylabel="mean mu", ylim=(0, 1), title="Memory-as-Gate weight, converted")
    if layers <= 8:
        mu.legend()
    return save(figure, path)


def plot_quality(results: Results, path: Path) -> Path:
    """Perplexity, and recall beyond the window, against length."""
    figure, (text, recall) = new_figure(2)
    for arm, measures in results.measures.items():
        lengths = list(measures.perplexity)
        text.plot(lengths, list(measures.perplexity.values()), marker="o", label=arm, color=COLORS[arm])
        far = [(n, s.beyond) for n, s in measures.recall.items() if s.beyond is not None]
        recall.plot([n for n, _ in far], [x for _, x in far], marker="o", label=arm, color=COLORS[arm])
    text.set(xlabel="length in tokens", ylabel="perplexity", yscale="log", title="held-out text")
    text.yaxis.set_major_formatter("{x:g}")
    text.yaxis.set_minor_formatter("{x:g}")
    recall.set(
        xlabel="length in tokens", ylabel="share right", ylim=(-0.02, 1.02),
        title=f"recall more than {results.window} tokens back",
    )  # fmt: skip
    for panel in (text, recall):
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(results.measures["base"].perplexity), results.measures["base"].perplexity)
    figure.legend(*text.get_legend_handles_labels(), loc="outside lower center", ncols=len(results.measures))
    return save(figure, path)


def plot_memory(results: Results, path: Path) -> Path:
    """Bytes that the cache of one sequence holds, against how much it has read."""
    figure, (panel,) = new_figure(1)
    for arm, held in results.held.items():
        label = f"{arm} (keys kept: {held[-1].entries})"
        panel.plot(
            [h.tokens for h in held], [h.bytes / 2**20 for h in held], marker="o", label=label, color=COLORS[arm]
        )
    panel.set(xlabel="tokens read", ylabel="MiB held", ylim=(0, None), title="memory held, measured on the cache")
    panel.legend()
    return save(figure, path)
