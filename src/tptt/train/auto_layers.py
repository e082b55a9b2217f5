"""``layers="auto"``: what a configuration and settings must say for it, and what is measured on."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import torch

from tptt.hf.compat import CONFIG_NAME
from tptt.hf.configuration import TpttConfig

from .corpus import Corpus
from .settings import TrainingSettings

LAYER_ROWS = 16
"""Rows that layers are chosen on."""


def check_auto(config: TpttConfig, settings: TrainingSettings) -> bool:
    """Whether ``config`` leaves its layers to the data.

    Raises:
        ValueError: a budget without such layers, such layers without a budget, or nothing to bound the other layers.
    """
    auto = config.layers == "auto"
    if auto and settings.kv_budget is None:
        raise ValueError(
            "layers='auto' needs TrainingSettings(kv_budget=...), of a run the key kv_budget: the share of the base's "
            "keys and values that may remain, for example 0.5"
        )
    if settings.kv_budget is not None and not auto:
        raise ValueError(
            f"kv_budget chooses layers, but the configuration names them: layers={config.layers!r}, not 'auto'"
        )
    if auto and config.max_self_attn_length is None and config.memory_only_layers != "all":
        raise ValueError(
            "layers='auto' needs something that bounds the layers not chosen: max_self_attn_length=W gives them a "
            "window, memory_only_layers='all' leaves them the memory alone"
        )
    return auto


def resumed_config(
    config: TpttConfig, settings: TrainingSettings, checkpoint: str
) -> tuple[TpttConfig, TrainingSettings]:
    """``config`` and ``settings`` with what ``checkpoint`` decided: measured anew layers and widths might be others."""
    config, saved = copy.deepcopy(config), json.loads((Path(checkpoint) / CONFIG_NAME).read_text(encoding="utf-8"))
    decided = ["feature_width"]
    if config.layers == "auto":
        decided += ["layers", "memory_only_layers"]
    if config.max_self_attn_length == "auto":
        decided += ["max_self_attn_length"]
    for name in decided:
        setattr(config, name, saved[name])
    return config, replace(settings, kv_budget=None, kv_length=None, allocate_widths=False)


def measured_config(config: TpttConfig, seq_len: int) -> TpttConfig:
    """``config`` with a memory and a window in every layer, to measure on.

    Where there is no window, because the layers not chosen are to have memory alone, one of ``seq_len`` / 8 stands for
    what a memory learns first: before training nobody knows what it will hold.
    """
    config = copy.deepcopy(config)
    window = config.max_self_attn_length or max(1, seq_len // 8)
    config.layers, config.memory_only_layers, config.max_self_attn_length = "all", (), window
    if not isinstance(widths := config.feature_width, int):  # of the layers that are to be chosen
        config.feature_width = sum(widths) // len(widths) // 2 * 2
    return config


def first_rows(corpus: Corpus, settings: TrainingSettings, seq_len: int) -> list[dict[str, torch.Tensor]]:
    """Batches of the first rows of ``seq_len`` tokens that a training with ``settings`` sees, for `choose_layers`.

    Training weighs them as these do, and has not seen them yet when layers are chosen. The held-out part stays unseen
    for what is measured after training.
    """
    rows = corpus.rows(settings, seq_len, LAYER_ROWS)
    items = [rows[i] for i in range(LAYER_ROWS)]
    size = settings.per_device_train_batch_size
    parts = [items[i : i + size] for i in range(0, LAYER_ROWS, size)]
    return [{k: torch.stack([x[k] for x in part]) for k in ("input_ids", "loss_weights")} for part in parts]
