"""Lets the configuration of a converted model say what the model is now, before it is saved."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from tptt.config import MemoryConfig
from tptt.memory import LinearMemory

from .adapters import active_in, adapters_in, saved_form
from .compat import as_peft_model
from .slots import MemoryLayer, memory_layers

if TYPE_CHECKING:
    from .model import TpttModel


def describe(model: TpttModel) -> None:
    """Write into ``model.config`` what ``model`` is: its memory, its adapters, and which of them are at work.

    Raises:
        ValueError: it has no memory in its layers, or its adapters are at work in some layers only.
    """
    config = model.config
    layers = memory_layers(model)
    if not layers or not all(isinstance(x.memory, LinearMemory) for x in layers):
        raise ValueError(
            f"{type(model).__name__} carries no memory (or only its window): there is nothing to save but the base"
        )
    settings = _memory_settings(layers, config.mix_gate)
    weights = [float(x.memory.mag_weight) for x in layers if not x.mu_fixed] or [1.0]
    same = len(set(weights)) == 1
    config.layer_mag_weights = None if same else [_short(float(x.memory.mag_weight)) for x in layers]
    mean = _short(weights[0] if same else sum(weights) / len(weights))
    settings = replace(settings, mag_weight=config.mag_weight if all(x.mu_fixed for x in layers) else mean)
    for f in fields(MemoryConfig):
        setattr(config, f.name, getattr(settings, f.name))
    config.repeat_base()
    peft = as_peft_model(model.backbone)
    adapters = {} if peft is None else adapters_in(peft)
    active = [] if peft is None else active_in(peft)
    config.lora_config = saved_form(adapters)
    config.active_adapters = None if active == list(adapters)[:1] else active


def _memory_settings(layers: list[MemoryLayer], mix_gate: str) -> MemoryConfig:
    """What memory the ``layers`` carry; ``mix_gate`` is that of layers whose mu is fixed, which hold none."""
    config = next((x.memory.config for x in layers if not x.mu_fixed), None)
    if config is None:
        config = replace(layers[0].memory.config, mix_gate=mix_gate)
    widths = tuple(x.memory.config.feature_width for x in layers)
    assert all(isinstance(width, int) for width in widths)
    return replace(config, feature_width=widths[0] if len(set(widths)) == 1 else widths)  # type: ignore[arg-type]


def _short(weight: float) -> float:
    """The shortest decimal number whose float32 is ``weight``'s."""
    return float(str(np.float32(weight)))
