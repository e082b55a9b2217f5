"""``layers="auto"``: from a configuration that leaves its layers open to a model whose layers are chosen."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME

from tptt.convert.choose_layers import LayerChoice, choose_layers
from tptt.convert.divergence import untrained
from tptt.evaluation import mag_weight
from tptt.hf import attach_memory, detach_memory
from tptt.hf.configuration import TpttConfig
from tptt.hf.model import TpttModel
from tptt.processes import agreed

from .corpus import Corpus
from .settings import TrainingSettings

_ROWS = 16  # that are measured on
_SETTINGS = ("layers", "memory_only_layers", "max_self_attn_length", "feature_width")


def check_auto(config: TpttConfig, settings: TrainingSettings) -> bool:
    """Whether ``config`` leaves its layers to the data.

    Raises:
        ValueError: a budget without such layers, such layers without a budget, or nothing to bound the other layers.
    """
    auto = config.layers == "auto"
    if auto and settings.kv_budget is None:
        raise ValueError(
            "layers='auto' needs TrainingSettings(kv_budget=...), of a run the key kv_budget: the share of the base's keys and values that may remain, "
            "for example 0.5"
        )
    if settings.kv_budget is not None and not auto:
        raise ValueError(
            f"kv_budget chooses layers, but the configuration names them: layers={config.layers!r}, not 'auto'"
        )
    if auto and config.max_self_attn_length is None and config.memory_only_layers != "all":
        raise ValueError(
            "layers='auto' needs something that bounds the layers not chosen: max_self_attn_length=W gives them a window, "
            "memory_only_layers='all' leaves them the memory alone"
        )
    return auto


def resumed_config(config: TpttConfig, checkpoint: str) -> TpttConfig:
    """``config`` with the layers and widths that ``checkpoint`` has: measured anew they might be others."""
    config, saved = copy.deepcopy(config), json.loads((Path(checkpoint) / CONFIG_NAME).read_text())
    for name in ("feature_width", *(("layers", "memory_only_layers") if config.layers == "auto" else ())):
        setattr(config, name, saved[name])
    return config


def measured_config(config: TpttConfig, length: int) -> TpttConfig:
    """``config`` with a memory and a window in every layer, to measure on.

    Where there is no window, because the layers not chosen are to have memory alone, one of ``length`` / 8 stands for what
    a memory learns soonest: before training nobody knows what it will hold.
    """
    config = copy.deepcopy(config)
    window = config.max_self_attn_length or max(1, length // 8)
    config.layers, config.memory_only_layers, config.max_self_attn_length = "all", (), window
    if not isinstance(widths := config.feature_width, int):  # of the layers that are to be chosen
        config.feature_width = sum(widths) // len(widths) // 2 * 2
    return config


def first_rows(corpus: Corpus, settings: TrainingSettings, length: int) -> list[dict[str, torch.Tensor]]:
    """Batches of the first rows of ``length`` tokens that a training with ``settings`` sees, for `choose_layers`."""
    rows = corpus.rows(settings, length, _ROWS)
    items = [rows[i] for i in range(_ROWS)]
    parts = (
        items[i : i + settings.per_device_train_batch_size]
        for i in range(0, _ROWS, settings.per_device_train_batch_size)
    )
    return [{k: torch.stack([x[k] for x in part]) for k in ("input_ids", "loss_weights")} for part in parts]


def settle_layers(
    model: TpttModel, config: TpttConfig, corpus: Corpus, settings: TrainingSettings, length: int
) -> LayerChoice:
    """Choose the layers of ``model``, made of `measured_config`, and attach its memories anew: to those that ``config``, the
    budget and the measurement leave them. ``model.config`` then names them.

    Measured at mu = 0 on the first rows that it will be trained on, which it has not seen yet, weighted as the training
    weighs them: the held-out part stays unseen for what comes after.
    """
    batches = first_rows(corpus, settings, length)
    with untrained(model), mag_weight(model, 0.0):
        assert settings.kv_budget is not None
        choice = agreed(
            choose_layers(model, batches, settings.kv_budget, settings.kv_length or length, config.memory_only_layers)
        )
    detach_memory(model.backbone)
    for name in _SETTINGS:
        setattr(model.config, name, choice.settings.get(name, getattr(config, name)))
    attach_memory(model.backbone, model.config.memory_config())
    return choice
