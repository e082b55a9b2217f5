"""What `tptt train --dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tptt.assets import shipped_curves
from tptt.estimate.expectations import FAILED, Curves, NoCurvesError, expect
from tptt.estimate.fit import ways_to_fit
from tptt.estimate.hardware import HARDWARE, dtype_name
from tptt.estimate.resources import CACHED, ResourceEstimate, estimate_resources
from tptt.estimate.survey import Survey
from tptt.progress import report_progress
from tptt.run.base import base_name
from tptt.run.keys import keys
from tptt.run.options import RunOptions
from tptt.train.optim import peak_rates


def show_dry_run(options: RunOptions, console: Console) -> None:
    """Print what the run takes and brings, from the base's configuration alone."""
    survey = Survey(options)
    options = survey.options
    names = [options.hardware] if options.hardware else list(HARDWARE)
    with report_progress("counting operations and memory", len(names), "devices") as progress:
        estimates = {}
        for name in names:
            estimates[name] = estimate_resources(options, name, survey)
            progress.advance()
    first = next(iter(estimates.values()))
    training = options.training
    rates = peak_rates(survey.model, training.learning_rate, training.memory_learning_rate)
    console.print(_run_table(options, first, rates))
    if survey.choice is not None:
        whole, memory = len(survey.choice.whole), len(survey.choice.memory)
        say(
            console,
            f"layers: auto: counted with {whole} that keep their whole context and {memory} that have a memory, "
            f"{len(survey.choice.memory_only)} of these without softmax; which ones the run measures on its text",
        )
    console.print(_memory_table(estimates))
    console.print(_time_table(estimates))
    for name, estimate in estimates.items():
        for line in verdict(options, name, estimate, survey):
            say(console, line)
    console.print(_cache_table(first))
    say(console, cache_line(first))
    for line in expectations(options, first):
        say(console, line)


def say(console: Console, line: str) -> None:
    """Print ``line`` as it is."""
    console.print(line, markup=False, soft_wrap=True)


def _run_table(options: RunOptions, estimate: ResourceEstimate, rates: tuple[float, float]) -> Table:
    found = estimate.parameters
    table = Table("", "", title=f"Run: {base_name(options)}", title_justify="left", show_header=False)
    per_step = estimate.tokens // estimate.steps
    for name, value in {
        "parameters": f"{found.total:,}: base {found.base:,}, LoRA {found.lora:,}, memory {found.memory:,}",
        "trained": f"{found.trained:,} ({found.trained / found.total:.2%})",
        "multiplied per token": f"{found.active:,} of the base",
        "tokens": f"{estimate.tokens:,} in {estimate.steps:,} steps of {per_step:,} (rows of {estimate.length})",
        "learning rates": "{:.3g} for LoRA, {:.3g} for the memory".format(*rates),
        "softmax window": "none" if options.memory.window is None else f"{options.memory.window} tokens",
    }.items():
        table.add_row(name, value)
    return table


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def _fit(estimate: ResourceEstimate) -> str:
    return "narrowly" if estimate.narrow else "yes" if estimate.fits else "NO"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _table(title: str, first: str, estimates: Mapping[str, ResourceEstimate]) -> Table:
    """A table with a column for each device."""
    table = Table(first, title=title, title_justify="left")
    for estimate in estimates.values():
        table.add_column(estimate.hardware.title, justify="right")
    return table


def _memory_table(estimates: Mapping[str, ResourceEstimate]) -> Table:
    found = list(estimates.values())
    table = _table("Estimated memory", "peak memory in GiB", estimates)
    for part in found[0].parts:
        table.add_row(part, *(gib(x.parts[part]) for x in found))
    table.add_section()
    table.add_row("all", *(gib(x.peak) for x in found))
    table.add_row("usable", *(gib(x.hardware.usable) for x in found))
    table.add_row("fits", *(_fit(x) for x in found))
    return table


def _time_table(estimates: Mapping[str, ResourceEstimate]) -> Table:
    """The time of the training, and what it rests on: counted operations and an assumed speed for base and memories
    each."""
    found = list(estimates.values())
    table = _table("Estimated time of the training", "", estimates)
    table.add_row("time", *("-" if x.seconds is None else duration(x.seconds) for x in found))
    table.add_row("of it the memories", *(_memory_share(x) for x in found))
    table.add_section()
    operations = found[0].operations
    table.add_row("base, GFLOP a token", *[f"{operations.base / 1e9:.3g}"] * len(found))
    for dtype, count in operations.memory.items():
        table.add_row(f"memories, GFLOP a token in {dtype_name(dtype)}", *[f"{count / 1e9:.3g}"] * len(found))
    table.add_section()
    table.add_row("base, assumed TFLOP/s", *(_speed(x, x.computed_in, x.hardware.utilisation) for x in found))
    for dtype in operations.memory:
        speeds = (_speed(x, dtype, x.hardware.memory_utilisation) for x in found)
        table.add_row(f"memories, assumed TFLOP/s in {dtype_name(dtype)}", *speeds)
    return table


def _memory_share(estimate: ResourceEstimate) -> str:
    if estimate.seconds is None:
        return "-"
    base, memory = estimate.seconds_per_token
    return f"{memory / (base + memory):.0%}"


def _speed(estimate: ResourceEstimate, dtype: torch.dtype, share: float) -> str:
    """Peak and the share of it that is assumed to be reached."""
    if not estimate.hardware.computes(dtype):
        return "-"
    return f"{estimate.hardware.teraflops[dtype_name(dtype)]:g} x {share:g}"


def verdict(options: RunOptions, name: str, estimate: ResourceEstimate, survey: Survey) -> list[str]:
    """What is wrong with the run on the device, and which keys to change."""
    lines = [f"note: {note}" for note in estimate.notes]
    if estimate.fits and estimate.seconds is not None:
        return lines
    changes = ways_to_fit(options, name, survey)
    needs = f"{estimate.hardware.title}: "
    if not estimate.fits:
        needs += f"the run does not fit: it takes {gib(estimate.peak)} GiB of {gib(estimate.hardware.usable)} usable"
    else:
        needs += "the run is not computed there as it is"
    if changes is None:
        return [
            *lines,
            f"{needs}; no change of keys that is known here makes it fit: take a smaller base",
        ]
    changed = estimate_resources(options.changed(**changes), name, survey)
    took = "" if changed.seconds is None else f", {duration(changed.seconds)}"
    return [*lines, f"{needs}; with {as_keys(changes)} it takes {gib(changed.peak)} GiB{took}"]


def as_keys(changes: Mapping[str, Any]) -> str:
    """Keys and values as a run file has them."""
    return ", ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in changes.items())


def _cache_table(estimate: ResourceEstimate) -> Table:
    title = "Cache of one sequence"
    table = Table("tokens", "base, MiB", "converted, MiB", "times smaller", title=title, title_justify="left")
    for tokens in CACHED:
        base, converted = estimate.cache_bytes(tokens)
        table.add_row(f"{tokens:,}", f"{base / 2**20:.1f}", f"{converted / 2**20:.1f}", f"{base / converted:.2g}")
    for column in table.columns:
        column.justify = "right"
    return table


def cache_line(estimate: ResourceEstimate) -> str:
    """From where on the converted model's cache is the smaller one."""
    tokens = f"{estimate.state_in_tokens:,.0f}"
    states = f"the states of the memories take as much as the keys and values of {tokens} tokens of the base"
    if estimate.break_even is None:
        return f"{states}; the cache is never smaller than the base's"
    return f"{states}; the cache is smaller than the base's from {estimate.break_even:,} tokens on"


_MEASURES = {
    "recall_trained": "recall beyond the window",
    "recall_2x": "at twice the length",
    "recall_4x": "at four times the length",
    "recall_unseen": "in a format never trained",
    "perplexity_ratio": "perplexity / base",
}


# of the run's own keys those that a result depends on
_RECIPE = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "quantization")
# of the other keys those that it does not depend on, or that are told in words of their own (the first three)
_NOT_OF_THE_RECIPE = (
    "tokens",
    "seq_len",
    "max_self_attn_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "probe_steps",
    "stop_at_recall",
    "kv_length",
    "bf16",
    "gradient_checkpointing",
    "seed",
)


def changed_recipe(options: RunOptions) -> dict[str, Any]:
    """Keys that a result depends on and that are not as by default, as the measured runs were."""

    def counts(name: str) -> bool:
        return name in _RECIPE if keys()[name].part == "run" else name not in _NOT_OF_THE_RECIPE

    return {name: value for name, value in options.not_default().items() if counts(name)}


def expectations(
    options: RunOptions, estimate: ResourceEstimate, files: Iterable[str | Path] | None = None
) -> list[str]:
    """What the measured curves in ``files`` say of the run, in lines; None are those that ship with the package."""
    base = estimate.parameters.base
    try:
        curves = Curves.nearest(shipped_curves() if files is None else files, base)
    except NoCurvesError as error:
        return [f"what to expect: {error}"]
    window = options.memory.window
    found = expect(curves, estimate.tokens, base, estimate.length, window, changed_recipe(options))
    values = ", ".join(f"{_MEASURES[k]} {_with_spread(*x)}" for k, x in found.values.items())
    if not found.extrapolates:
        return [f"what to expect, as measured with {curves.base} at {estimate.tokens:,} tokens: {values}"]
    lines = [
        f"measured with {curves.base}: {values}",
        f"this run is another, so that this is an extrapolation: {'; '.join(found.reasons)}",
    ]
    return [*lines, FAILED] if found.failed_before else lines


def _with_spread(mean: float, spread: float | None) -> str:
    return f"{mean:.2f} (one run)" if spread is None else f"{mean:.2f} +- {spread:.2f}"
