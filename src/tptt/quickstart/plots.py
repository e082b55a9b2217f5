"""The plots of a run, as PNG files; needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .results import Results

COLORS = {"base": "#4c72b0", "window alone": "#dd8452", "converted": "#55a868"}


def write_plots(results: Results, folder: Path) -> None:
    """Write quality.png, training.png and memory.png into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in (("quality", plot_quality), ("training", plot_training), ("memory", plot_memory)):
        plot(results).savefig(folder / f"{name}.png", dpi=110)


def _new_figure(panels: int) -> tuple[Figure, list]:
    figure = Figure(figsize=(5 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def plot_training(results: Results) -> Figure:
    """Training loss in nats of the trained arms, and mu of each layer at the probes, over steps."""
    figure, (loss, mu) = _new_figure(2)
    for arm, history in results.losses.items():
        values = [x["loss"] for x in history]
        mean = [sum(values[max(0, i - 7) : i + 1]) / len(values[max(0, i - 7) : i + 1]) for i in range(len(values))]
        loss.plot([x["step"] for x in history], mean, label=arm, color=COLORS[arm])
    loss.set(xlabel="step", ylabel="loss in nats (mean of 8 logs)", title="training loss, recall weighted up")
    loss.legend()
    assert results.converted is not None
    probes = results.converted.probe_results
    layers = len(probes[0].use.layers)
    for i in range(layers):
        mu.plot([x.step for x in probes], [x.use.layers[i].mu for x in probes], marker="o", label=f"layer {i}")
    mu.set(xlabel="step", ylabel="mean mu", ylim=(0, 1), title="Memory-as-Gate weight, converted")
    if layers <= 8:
        mu.legend()
    return figure


def plot_quality(results: Results) -> Figure:
    """Perplexity, and recall beyond the window, against length."""
    figure, (text, recall) = _new_figure(2)
    for arm, measures in results.measures.items():
        lengths = list(measures.perplexity)
        text.plot(lengths, list(measures.perplexity.values()), marker="o", label=arm, color=COLORS[arm])
        far = [(n, s.beyond) for n, s in measures.recall.items() if s.beyond is not None]
        recall.plot([n for n, _ in far], [x for _, x in far], marker="o", label=arm, color=COLORS[arm])
    text.set(xlabel="length in tokens", ylabel="perplexity", yscale="log", title="held-out text")
    text.yaxis.set_major_formatter("{x:g}")
    text.yaxis.set_minor_formatter("{x:g}")
    recall.set(
        xlabel="length in tokens",
        ylabel="share right",
        ylim=(-0.02, 1.02),
        title=f"recall more than {results.window} tokens back",
    )
    for panel in (text, recall):
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(results.measures["base"].perplexity), results.measures["base"].perplexity)
    figure.legend(*text.get_legend_handles_labels(), loc="outside lower center", ncols=len(results.measures))
    return figure


def plot_memory(results: Results) -> Figure:
    """Bytes that the cache of one sequence holds, against how much it has read."""
    figure, (panel,) = _new_figure(1)
    for arm, held in results.held.items():
        label = f"{arm} (keys kept: {held[-1].entries})"
        panel.plot(
            [h.tokens for h in held], [h.bytes / 2**20 for h in held], marker="o", label=label, color=COLORS[arm]
        )
    panel.set(xlabel="tokens read", ylabel="MiB held", ylim=(0, None), title="memory held, measured on the cache")
    panel.legend()
    return figure
