"""report.md of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tptt.evaluation import markdown_table
from tptt.hf import memories
from tptt.train.loop import Converted
from tptt.train.optim import peak_rates
from tptt.train.probe import ProbeResult
from tptt.version import __version__

from .options import RunOptions, flat_options


def probe_table(results: list[ProbeResult]) -> str:
    """By step: recall beyond the window and perplexity with both branches, the window alone and the memory alone."""
    arms = list(results[0].use.recall)
    heads = [f"{what}: {arm}" for what in ("recall beyond W", "perplexity") for arm in arms]
    rows = []
    for result in results:
        recall = [result.use.recall[arm].beyond for arm in arms]
        text = [result.use.perplexity[arm] for arm in arms]
        rows.append([result.step, *(_cell(x, ".2f") for x in (*recall, *text))])
    return markdown_table(["step", *heads], rows)


def layers_table(result: ProbeResult, widths: Sequence[int]) -> str:
    """Feature width, mean mu and size of the memory's output over the softmax's, by layer."""
    layers = enumerate(zip(result.use.layers, widths, strict=True))
    rows = [[i, width, f"{x.mu:.3f}", _cell(x.scale, ".2f")] for i, (x, width) in layers]
    return markdown_table(["layer with a memory", "width", "mu", "scale"], rows)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def write_summary(out: Path, options: RunOptions, converted: Converted) -> Path:
    """Write ``out``/report.md and return its path."""
    model = converted.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lr, memory_learning_rate = peak_rates(model, options.training.learning_rate, options.training.memory_learning_rate)
    losses = [(x["step"], x["loss"]) for x in converted.history if "loss" in x]
    changed = {k: v for k, v in flat_options(options).items() if v != flat_options(RunOptions())[k]}
    settings = markdown_table(["key", "value"], [[k, f"`{v}`"] for k, v in changed.items()])
    window = options.memory.max_self_attn_length
    seen = f"Softmax window W = {window} tokens." if window else "No softmax window."
    parts = [
        "# Training report",
        f"Base: `{options.base_model_name}`. {seen} {trained:,} parameters trained, {converted.seconds:.0f} s, "
        f"peak learning rates {lr:.3g} of LoRA and {memory_learning_rate:.3g} of the memory, "
        f"tptt {__version__}, torch {torch.__version__}. All settings: [run.yaml](run.yaml); other than by default:",
        settings,
        "## Warnings",
        "\n".join(f"- {w}" for w in converted.warnings) or "None.",
    ]
    if options.memory.layers == "auto":
        chosen = converted.choice or f"layers {list(model.config.layers)} have a memory"
        parts += ["## Layers", f"Chosen: {chosen}."]
    if losses:
        (first, start), (last, end) = losses[0], losses[-1]
        parts += ["## Training", f"Loss in nats: {start:.3f} at step {first}, {end:.3f} at step {last}."]
    if converted.probe_results:
        parts += [
            "## Who does the work", "Held-out text and recall rows of the training length; \"window only\" is mu = 0, \"memory only\" "
            "mu = 1 in the same model.", probe_table(converted.probe_results), f"After step {converted.probe_results[-1].step}:",
            layers_table(converted.probe_results[-1], [m.key_features.width for m in memories(model)]),
        ]  # fmt: skip
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
