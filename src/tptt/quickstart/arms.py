"""The arms of the comparison: how each is built and trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import TrainerCallback

from tptt.convert.window_only import window_alone
from tptt.hf import memories
from tptt.hf.configuration import TpttConfig
from tptt.hf.model import TpttModel
from tptt.train import BranchProbe, Corpus, TrainingSettings, train
from tptt.train.begin import begin_conversion

Tick = Callable[[int], None]


def new_arm(
    base_model: str, lora: dict, window: int, corpus: Corpus, settings: TrainingSettings, length: int, memory: bool
) -> TpttModel:
    """The base with window and LoRA, and with the memory, its start measured on the text, or without it."""
    config = TpttConfig(base_model_name=base_model, lora_config=lora, max_self_attn_length=window)
    model = begin_conversion(config, corpus, settings, length, dtype=torch.float32).model
    return model if memory else window_alone(model)


class _Tick(TrainerCallback):
    def __init__(self, tick: Tick) -> None:
        self.tick = tick

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.tick(1)


def train_arm(
    model: TpttModel, corpus: Corpus, settings: TrainingSettings, length: int, tick: Tick
) -> tuple[list[dict], BranchProbe | None]:
    """Train in place; every arm sees the same rows in the same order.

    Returns:
        Trainer's log entries that hold a loss, and what looked at the branches, where there is a memory.
    """
    callbacks: list[TrainerCallback] = [_Tick(tick)]
    probe = None
    if memories(model):
        probe = BranchProbe.of(model, corpus, settings, length)
        callbacks.append(probe)
    history = train(model, corpus, settings, length, callbacks=callbacks)
    return [entry for entry in history if "loss" in entry], probe
