"""From `TrainingSettings` to the arguments of Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from .settings import TrainingSettings

MAX_GRAD_NORM = 1.0
"""Norm to which the gradient of a step is clipped."""


def training_arguments(
    settings: TrainingSettings, output_dir: str, steps: int, overrides: Mapping[str, Any] | None = None
) -> TrainingArguments:
    """Trainer's arguments for ``settings``.

    Args:
        settings: how to train. `ConversionTrainer` reads the learning rates from there.
        output_dir: folder for Trainer's own files.
        steps: optimizer steps.
        overrides: arguments of `TrainingArguments` to be used instead of, or beside, those that follow from
            ``settings``.
    """
    on_gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        "output_dir": output_dir,
        "max_steps": steps,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(settings.warmup_steps, steps // 2),
        "max_grad_norm": MAX_GRAD_NORM,
        "seed": settings.seed,
        "bf16": on_gpu and torch.cuda.is_bf16_supported() if settings.bf16 is None else settings.bf16,
        "activation_checkpointing": settings.gradient_checkpointing,  # gradient_checkpointing until transformers 5.22
        "logging_steps": max(1, steps // 100),
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "use_cpu": not on_gpu,
        "disable_tqdm": True,
    }
    given = dict(overrides or {})
    if "gradient_checkpointing" in given:  # its old name, which counts only where the new one is not given
        given.setdefault("activation_checkpointing", given.pop("gradient_checkpointing"))
    return TrainingArguments(**found | given)
