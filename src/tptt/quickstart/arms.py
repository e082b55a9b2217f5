"""The arms of the comparison: how each is built, trained and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from tptt.configuration import TpttConfig
from tptt.evaluation import RecallScore, perplexity, recall_accuracy
from tptt.modeling import TpttModel
from tptt.training import AdjustMaGWeightCallback, parameter_groups
from tptt.training.recall_trainer import RecallTrainer
from tptt.training.window import window_alone

from .material import Material
from .options import QuickstartOptions

Tick = Callable[[int], None]
INITIAL, FINAL = 0.01, 0.5
WARM_UP = 10


@dataclass(frozen=True)
class Measures:
    """Perplexity and recall by length in tokens."""

    perplexity: dict[int, float]
    recall: dict[int, RecallScore]


def new_arm(base_model: str, lora: dict, window: int, seed: int, memory: bool) -> TpttModel:
    """The base with window and LoRA, and with the memory or without it."""
    torch.manual_seed(seed)
    config = TpttConfig(
        base_model_name=base_model, lora_config=lora, max_self_attn_length=window, mag_weight=INITIAL if memory else 0.0
    )
    model = TpttModel(config, dtype=torch.float32)
    if not memory:
        window_alone(model)
    return model


class _Tick(TrainerCallback):
    def __init__(self, tick: Tick) -> None:
        self.tick = tick

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.tick(1)


def train_arm(model: TpttModel, material: Material, options: QuickstartOptions, memory: bool, tick: Tick) -> list[dict]:
    """Train in place; every arm sees the same rows in the same order. Returns the Trainer's log history."""
    callbacks: list[TrainerCallback] = [_Tick(tick)]
    if memory:
        callbacks.append(AdjustMaGWeightCallback(model, INITIAL, FINAL, min(options.ramp, options.steps)))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=options.rows,
            lr_scheduler_type="cosine", warmup_steps=min(WARM_UP, options.steps // 2), max_grad_norm=1.0,
            seed=options.seed, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(parameter_groups(model))
        trainer = RecallTrainer(
            model=model, args=arguments, train_dataset=material.train, callbacks=callbacks, optimizers=(optimizer, None)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def measure(model, material: Material, window: int, seed: int, tick: Tick) -> Measures:
    """Perplexity and recall at each length; ticks once per length."""
    scores, recall = {}, {}
    for length in material.lengths:
        scores[length] = perplexity(model, material.text_rows(length))
        recall[length] = recall_accuracy(model, material.recall, length, window, material.eval_rows, seed)
        tick(1)
    return Measures(scores, recall)
