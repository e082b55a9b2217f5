"""What `tptt train --dry-run` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tptt.assets import shipped_curves
from tptt.estimate.expectations import Curves, NoCurvesError, expect
from tptt.estimate.fit import ways_to_fit
from tptt.estimate.hardware import HARDWARE
from tptt.estimate.resources import Budget, Survey, budget
from tptt.run.base import base_name
from tptt.run.keys import keys
from tptt.run.options import RunOptions
from tptt.train.optim import peak_rates


def show_dry_run(options: RunOptions, console: Console) -> None:
    """What the run takes and brings, from the base's configuration alone."""
    survey = Survey(options)
    options = survey.options
    names = [options.hardware] if options.hardware else list(HARDWARE)
    plans = {name: budget(options, name, survey) for name in names}
    first = next(iter(plans.values()))
    console.print(
        _run_table(
            options,
            first,
            peak_rates(survey.model, options.training.learning_rate, options.training.memory_learning_rate),
        )
    )
    if survey.choice is not None:
        whole, memory = len(survey.choice.whole), len(survey.choice.memory)
        console.print(
            f"layers: auto: counted with {whole} that keep their whole context and {memory} that have a memory, "
            f"{len(survey.choice.memory_only)} of these without softmax; which ones the run measures on its text",
            markup=False,
            soft_wrap=True,
        )
    console.print(_memory_table(plans))
    for name, plan in plans.items():
        for line in verdict(options, name, plan, survey):
            console.print(line, markup=False, soft_wrap=True)
    console.print(_cache_table(first))
    for line in expectations(options, first):
        console.print(line, markup=False, soft_wrap=True)


def _run_table(options: RunOptions, plan: Budget, rates: tuple[float, float]) -> Table:
    found = plan.parameters
    table = Table("", "", title=f"Run: {base_name(options)}", title_justify="left", show_header=False)
    per_step = plan.tokens // plan.steps
    for name, value in {
        "parameters": f"{found.total:,}: base {found.base:,}, LoRA {found.lora:,}, memory {found.memory:,}",
        "trained": f"{found.trained:,} ({found.trained / found.total:.2%})",
        "multiplied per token": f"{found.active:,} of the base",
        "tokens": f"{plan.tokens:,} in {plan.steps:,} steps of {per_step:,} (rows of {plan.length})",
        "learning rates": "{:.3g} for LoRA, {:.3g} for the memory".format(*rates),
        "softmax window": "none" if options.memory.window is None else f"{options.memory.window} tokens",
    }.items():
        table.add_row(name, value)
    return table


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def _fit(plan: Budget) -> str:
    return "narrowly" if plan.narrow else "yes" if plan.fits else "NO"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _memory_table(plans: Mapping[str, Budget]) -> Table:
    table = Table("peak memory in GiB", title="Estimated memory and time", title_justify="left")
    for plan in plans.values():
        table.add_column(plan.hardware.title, justify="right")
    for part in next(iter(plans.values())).parts:
        table.add_row(part, *(gib(plan.parts[part]) for plan in plans.values()))
    table.add_section()
    table.add_row("all", *(gib(plan.peak) for plan in plans.values()))
    table.add_row("usable", *(gib(plan.hardware.usable) for plan in plans.values()))
    table.add_row("fits", *(_fit(plan) for plan in plans.values()))
    table.add_row("time", *("-" if plan.seconds is None else duration(plan.seconds) for plan in plans.values()))
    rates = [plan.hardware.teraflops.get(str(plan.computed_in).removeprefix("torch.")) for plan in plans.values()]
    told = [
        "-" if rate is None else f"{rate:g} TFLOP/s x {plan.hardware.utilisation:g}"
        for rate, plan in zip(rates, plans.values(), strict=True)
    ]
    table.add_row("assumed", *told)
    return table


def verdict(options: RunOptions, name: str, plan: Budget, survey: Survey) -> list[str]:
    """What is wrong with the run on the device, and which keys to change."""
    lines = [f"note: {note}" for note in plan.notes]
    if plan.fits and plan.seconds is not None:
        return lines
    changes = ways_to_fit(options, name, survey)
    needs = f"{plan.hardware.title}: "
    if not plan.fits:
        needs += f"the run does not fit: it takes {gib(plan.peak)} GiB of {gib(plan.hardware.usable)} usable"
    else:
        needs += "the run is not computed there as it is"
    if changes is None:
        return [
            *lines,
            f"{needs}; no change of keys that is known here makes it fit: take a smaller base",
        ]
    changed = budget(options.changed(**changes), name, survey)
    took = "" if changed.seconds is None else f", {duration(changed.seconds)}"
    return [*lines, f"{needs}; with {as_keys(changes)} it takes {gib(changed.peak)} GiB{took}"]


def as_keys(changes: Mapping[str, Any]) -> str:
    """Keys and values as a run file has them."""
    return ", ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in changes.items())


def _cache_table(plan: Budget) -> Table:
    table = Table(
        "tokens", "base, MiB", "converted, MiB", "times smaller", title="Cache of one sequence", title_justify="left"
    )
    for tokens, (base, converted) in plan.cache.items():
        table.add_row(f"{tokens:,}", f"{base / 2**20:.1f}", f"{converted / 2**20:.1f}", f"{base / converted:.1f}")
    for column in table.columns:
        column.justify = "right"
    return table


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


def expectations(options: RunOptions, plan: Budget, curves: Curves | None = None) -> list[str]:
    """What the measured curves say of the run, in lines."""
    try:
        curves = curves or Curves.nearest(shipped_curves(), plan.parameters.base)
    except NoCurvesError as error:
        return [f"what to expect: {error}"]
    window = options.memory.window
    found = expect(curves, plan.tokens, plan.parameters.base, plan.length, window, changed_recipe(options))
    values = ", ".join(f"{_MEASURES[k]} {_with_spread(*x)}" for k, x in found.values.items())
    lines = [f"what to expect, as measured with {curves.base} at {plan.tokens:,} tokens: {values}"]
    if found.extrapolates:
        lines[0] = f"measured with {curves.base}: {values}"
        lines.append(f"this run is another, so that this is an extrapolation: {'; '.join(found.reasons)}")
    return lines


def _with_spread(mean: float, spread: float | None) -> str:
    return f"{mean:.2f} (one run)" if spread is None else f"{mean:.2f} +- {spread:.2f}"
