"""What a run takes on one device: parameters, memory, time, and what its model's cache holds. From the base's
configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from tptt.hf.cache_formula import CacheFormula, break_even, state_in_tokens
from tptt.run.options import RunOptions
from tptt.train.base import row_length

from .hardware import HARDWARE, Hardware, check_hardware, dtype_name
from .memory import peak_memory, recomputes
from .operations import Operations, Step
from .parameters import Parameters
from .survey import Survey

CACHED = (512, 2048, 8192, 32768, 131072)
"""Tokens after which caches are compared: few enough for a state to be larger than what it stands for, and many."""
_NARROW = 0.9  # of what is usable: closer than this the estimate is no promise


@dataclass(frozen=True)
class ResourceEstimate:
    """What a run takes on one kind of device.

    Args:
        hardware: the device.
        parameters: of the converted model.
        computed_in: dtype of matrix products and activations.
        length, rows, steps, tokens: of the training.
        parts: name -> bytes at the peak of a step.
        operations: floating-point operations of training per token.
        base_cache, cache: what the caches of the base and of the converted model hold.
        notes: what is wrong with the run on this device, or worth knowing.
    """

    hardware: Hardware
    parameters: Parameters
    computed_in: torch.dtype
    length: int
    rows: int
    steps: int
    tokens: int
    parts: dict[str, int]
    operations: Operations
    base_cache: CacheFormula
    cache: CacheFormula
    notes: tuple[str, ...]

    @cached_property
    def peak(self) -> int:
        """Bytes at the peak of a step."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the device's memory holds the run."""
        return self.peak <= self.hardware.usable

    @property
    def narrow(self) -> bool:
        """Whether it fits by less than such an estimate is good for."""
        return self.fits and self.peak > _NARROW * self.hardware.usable

    @property
    def seconds(self) -> float | None:
        """Of the training; None where the device does not compute in that dtype at a speed worth having."""
        if not self.hardware.computes(self.computed_in):
            return None
        return self.tokens * sum(self.seconds_per_token)

    @property
    def seconds_per_token(self) -> tuple[float, float]:
        """Of the base and of the memories, where `seconds` is known."""
        memory = (self.hardware.seconds(n, dtype, True) for dtype, n in self.operations.memory.items())
        return self.hardware.seconds(self.operations.base, self.computed_in, False), sum(memory)

    def cache_bytes(self, tokens: int) -> tuple[int, int]:
        """Bytes of the caches of base and converted model after ``tokens`` tokens of one sequence, read one by one at
        last."""
        return self.base_cache.after(tokens).bytes, self.cache.after(tokens).bytes

    @cached_property
    def break_even(self) -> int | None:
        """Tokens from which on the converted model's cache is the smaller one; None: never."""
        return break_even(self.base_cache, self.cache)

    @cached_property
    def state_in_tokens(self) -> float:
        """Tokens whose keys and values in the base take as much memory as the states of the memories."""
        return state_in_tokens(self.base_cache, self.cache)


def estimate_resources(options: RunOptions, hardware: str, survey: Survey | None = None) -> ResourceEstimate:
    """What the run takes on a device of `HARDWARE`.

    Args:
        options: of the run.
        hardware: a name.
        survey: of the same model, where there is one already.

    Raises:
        OSError: there is no configuration of the base.
        ValueError: base and options do not fit each other, or the device is unknown.
        UnsupportedTorchError: the installed torch lacks a name that this counts with.
    """
    card, settings, survey = known_hardware(hardware), options.training, survey or Survey(options)
    computed = computed_in(options, survey, card)
    length = row_length(settings, survey.base)
    steps, rows = settings.steps(length), settings.per_device_train_batch_size
    base_cache, cache = survey.caches(computed)
    return ResourceEstimate(
        card,
        survey.parameters,
        computed,
        length,
        rows,
        steps,
        steps * rows * settings.gradient_accumulation_steps * settings.tbptt_chunks * length,
        peak_memory(options, survey, weights_in(options, survey), computed, length),
        survey.operations(step_of(options, length)),
        base_cache,
        cache,
        _notes(options, survey.parameters, card, computed),
    )


def known_hardware(name: str) -> Hardware:
    """The device ``name``. Raises ValueError where there is none."""
    check_hardware(name)
    return HARDWARE[name]


def weights_in(options: RunOptions, survey: Survey) -> torch.dtype:
    """dtype of the base's weights."""
    return survey.own_dtype if options.dtype == "auto" else getattr(torch, options.dtype)


def computed_in(options: RunOptions, survey: Survey, card: Hardware) -> torch.dtype:
    """dtype of matrix products: bfloat16 by autocast where Trainer does so, else that of the weights."""
    weights = weights_in(options, survey)
    if weights == torch.float32 and options.training.bf16 is not False and card.computes(torch.bfloat16):
        return torch.bfloat16
    return weights


def step_of(options: RunOptions, length: int) -> Step:
    """What a step of the run computes, in rows of ``length`` tokens."""
    settings = options.training
    text = 1 - settings.recall_share if settings.long_context_weight else 0.0
    rows = settings.per_device_train_batch_size
    return Step(rows, length, recomputes(options), bool(settings.needs_teacher), text)


def _notes(options: RunOptions, parameters: Parameters, card: Hardware, computed: torch.dtype) -> tuple[str, ...]:
    notes = []
    if not card.computes(computed):
        notes.append(f"{card.title}: no {dtype_name(computed)}; set dtype to {' or '.join(_dtypes(card))}")
    loose = parameters.base - parameters.linear
    if options.quantization == "4bit" and loose > parameters.linear:
        notes.append(
            f"4bit reaches linear layers only: {loose:,} of {parameters.base:,} parameters (experts, embeddings) stay "
            "outside, in float32"
        )
    return tuple(notes)


def _dtypes(card: Hardware) -> list[str]:
    """The dtypes that a base may be computed in."""
    return [name for name in card.teraflops if name != "float64"]
