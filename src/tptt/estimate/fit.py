"""What to change in a run so that a device's memory holds it."""

from __future__ import annotations

from typing import Any

from tptt.run.options import RunOptions
from tptt.train.base import LONGEST, row_length

from .hardware import HARDWARE
from .resources import Survey, budget


def ways_to_fit(options: RunOptions, hardware: str, survey: Survey | None = None) -> dict[str, Any] | None:
    """The keys to change, with their values, so that the run fits the device: {} where it does, None: no way known.

    Tried in this order, each on top of those before that helped: a dtype that the device has, recomputed activations, one
    row at a time, 4 bits, and at last shorter rows with as many tokens in a step, not below what is trained on where
    nobody says: a memory learns to recall as far as its rows reach.
    """
    card, settings, survey = HARDWARE[hardware], options.training, survey or Survey(options)
    changes: dict[str, Any] = {}
    if budget(options, hardware, survey).seconds is None:
        changes["dtype"] = next(iter(card.teraflops))
    ladder: list[dict[str, Any]] = [{}]
    if not settings.gradient_checkpointing:
        ladder.append({"gradient_checkpointing": True})
    if settings.per_device_train_batch_size > 1:
        ladder.append(
            {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": settings.gradient_accumulation_steps
                * settings.per_device_train_batch_size,
            }
        )
    if options.quantization == "none" and options.lora_r and hardware != "cpu":
        ladder.append({"quantization": "4bit"})
    length = row_length(settings, survey.base)
    shorter = length // 2
    while shorter >= max(LONGEST, 2 * (options.memory.window or 0)):
        ladder.append(
            {
                "seq_len": shorter,
                "gradient_accumulation_steps": settings.gradient_accumulation_steps
                * settings.per_device_train_batch_size
                * (length // shorter),
            }
        )
        shorter //= 2
    least: int | None = None
    for change in ladder:
        plan = budget(options.changed(**changes | change), hardware, survey)
        if least is None or plan.peak < least:
            changes, least = changes | change, plan.peak
        if plan.fits:
            return changes
    return None
