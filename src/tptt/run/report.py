"""report.md of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tptt.evaluation import markdown_table
from tptt.hf import memories
from tptt.train.loop import Converted
from tptt.train.optim import peak_rates
from tptt.train.probe_result import ProbeResult
from tptt.version import __version__

from .options import RunOptions


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


def write_report(out: Path, options: RunOptions, converted: Converted) -> Path:
    """Write ``out``/report.md and return its path."""
    parts = [*_run_part(options, converted), *_warnings_part(converted.warnings)]
    if options.memory.layers == "auto":
        chosen = converted.choice or f"layers {list(converted.model.config.layers)} have a memory"
        parts += ["## Layers", f"Chosen: {chosen}."]
    losses = [(x["step"], x["loss"]) for x in converted.history if "loss" in x]
    if losses:
        (first, start), (last, end) = losses[0], losses[-1]
        parts += ["## Training", f"Loss in nats: {start:.3f} at step {first}, {end:.3f} at step {last}."]
    if converted.probe_results:
        last_result = converted.probe_results[-1]
        parts += [
            "## Who does the work",
            'Held-out text and recall rows of the training length; "window only" is mu = 0, "memory only" is mu = 1 '
            "in the same model.",
            probe_table(converted.probe_results),
            f"After step {last_result.step}:",
            layers_table(last_result, [m.key_features.width for m in memories(converted.model)]),
        ]
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _run_part(options: RunOptions, converted: Converted) -> list[str]:
    model, settings = converted.model, options.training
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rate, memory_rate = peak_rates(model, settings.learning_rate, settings.memory_learning_rate)
    window = model.config.max_self_attn_length
    return [
        "# Training report",
        f"Base: {'the embedded one' if options.base_model is None else f'`{options.base_model}`'}. "
        f"{f'Softmax window W = {window} tokens' if window else 'No softmax window'}. {trained:,} parameters trained, "
        f"{converted.seconds:.0f} s, peak learning rates {rate:.3g} of LoRA and {memory_rate:.3g} of the memory, "
        f"tptt {__version__}, torch {torch.__version__}. All settings: [run.yaml](run.yaml); other than by default:",
        markdown_table(["key", "value"], [[key, f"`{value}`"] for key, value in options.not_default().items()]),
    ]


def _warnings_part(warnings: list[str]) -> list[str]:
    return ["## Warnings", "\n".join(f"- {text}" for text in warnings) or "None."]
