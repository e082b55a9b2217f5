"""What to change in a run so that a device's memory holds it."""

from __future__ import annotations

from typing import Any

from tptt.run.options import RunOptions
from tptt.train.base import LONGEST, row_length

from .hardware import Hardware
from .memory import peak_memory
from .resources import computed_in, known_hardware, weights_in
from .survey import Survey


def ways_to_fit(options: RunOptions, hardware: str, survey: Survey | None = None) -> dict[str, Any] | None:
    """The keys to change, with their values, so that the run fits the device: {} where it does, None: no way known.

    Tried in this order, each on top of those before that helped: a dtype that the device has, recomputed activations,
    one row at a time, 4 bits, and at last shorter rows with as many tokens in a step, not below what is trained on
    where nobody says: a memory learns to recall as far as its rows reach.
    """
    card, survey = known_hardware(hardware), survey or Survey(options)
    changes: dict[str, Any] = {}
    if not card.computes(computed_in(options, survey, card)):
        changes["dtype"] = next(iter(card.teraflops))
    least: int | None = None
    for change in _ladder(options, hardware, row_length(options.training, survey.base)):
        peak = _peak(options.changed(**changes | change), survey, card)
        if least is None or peak < least:
            changes, least = changes | change, peak
        if peak <= card.usable:
            return changes
    return None


def _peak(options: RunOptions, survey: Survey, card: Hardware) -> int:
    length = row_length(options.training, survey.base)
    weights, computed = weights_in(options, survey), computed_in(options, survey, card)
    return sum(peak_memory(options, survey, weights, computed, length).values())


def _ladder(options: RunOptions, hardware: str, length: int) -> list[dict[str, Any]]:
    """The changes to try, in their order; the first changes nothing."""
    settings = options.training
    rows = settings.gradient_accumulation_steps * settings.per_device_train_batch_size  # of a step
    ladder: list[dict[str, Any]] = [{}]
    if not settings.gradient_checkpointing:
        ladder.append({"gradient_checkpointing": True})
    if settings.per_device_train_batch_size > 1:
        ladder.append({"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows})
    if options.quantization == "none" and options.lora_r and hardware != "cpu":
        ladder.append({"quantization": "4bit"})
    shorter = length // 2
    while shorter >= max(LONGEST, 2 * (options.memory.window or 0)):
        ladder.append({"seq_len": shorter, "gradient_accumulation_steps": rows * (length // shorter)})
        shorter //= 2
    return ladder
