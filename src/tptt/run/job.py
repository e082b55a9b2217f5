"""A training run from its options to its folder: model, tokenizer, resolved run.yaml and report.md."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TrainerCallback

from tptt.data import TextSplit, load_text
from tptt.hf.configuration import TpttConfig
from tptt.hf.gguf_place import gguf_place
from tptt.hf.meta_model import skeleton
from tptt.processes import is_first
from tptt.train.allocator import keep_freed_memory
from tptt.train.auto_layers import check_auto, measured_config
from tptt.train.base import row_length
from tptt.train.loop import Converted, convert_and_train
from tptt.train.settings import TrainingSettings

from .base import base_config, base_name, conversion_config, decided
from .folder import WriteRunFile, check_output, where_it_begins
from .interrupt import SaveOnSignal
from .options import RunOptions
from .report import write_report

logger = logging.getLogger("tptt.progress")


def model_options(options: RunOptions) -> dict[str, Any]:
    """What the base is loaded with.

    Raises:
        ValueError: 4 bits are asked for, and bitsandbytes is not installed or the base is a GGUF file.
    """
    found: dict[str, Any] = {"dtype": options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)}
    if options.trust_remote_code:
        found["trust_remote_code"] = True
    if options.attn_implementation is not None:
        found["attn_implementation"] = options.attn_implementation
    if options.quantization == "4bit":
        if gguf_place(options.base_model, options.base_gguf_file) is not None:
            raise ValueError("quantization: 4bit: a GGUF base is read as floats, and is not quantised once more")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("quantization: 4bit needs bitsandbytes, which is not installed: pip install bitsandbytes")
        half = torch.float16 if options.dtype == "float16" else torch.bfloat16
        found["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=half if torch.cuda.is_available() else torch.float32,
        )
    return found


def trainer_arguments(options: RunOptions) -> dict[str, Any]:
    """What Trainer is given beside the settings."""
    found: dict[str, Any] = {}
    if options.save_steps:
        found |= {"save_strategy": "steps", "save_steps": options.save_steps, "save_total_limit": 1}
    if options.dtype == "float16" and torch.cuda.is_available():  # gradients of float16 need a scaled loss
        found |= {"fp16": True, "bf16": False}
    return found


def check_buildable(config: TpttConfig, settings: TrainingSettings) -> None:
    """Build the converted model on torch's meta device: what does not fit is told before text or weights are read.

    Raises:
        ValueError: base, memory and training do not fit each other.
    """
    config = copy.deepcopy(config)  # building a model changes its configuration
    if check_auto(config, settings):
        config = measured_config(config, row_length(settings, config.text_config))
    skeleton(config, torch.float32)


def run(options: RunOptions, callbacks: Sequence[TrainerCallback] = ()) -> Converted:
    """Train as ``options`` say and write the folder ``options.output_dir``.

    Without a GPU the process keeps freed memory from here on (`tptt.train.allocator`).

    Args:
        options: of the run.
        callbacks: further ones for Trainer.

    Raises:
        ValueError: the folder is not empty, or base, text and settings do not fit each other.
        OSError: base or data were not found.
        Interrupted: a signal ended the training, and a checkpoint was saved.
    """
    check_output(options)
    if options.resume_from_checkpoint and is_first():
        logger.info(where_it_begins(options))
    loading = model_options(options)
    options = options.changed(base_config=None)  # a file that stands for the base in a dry run
    base = base_config(options)
    options = decided(options, base)
    config = conversion_config(options, base, base_name(options))
    check_buildable(config, options.training)
    data: TextSplit | None = None
    if options.data is not None:
        data = load_text(options.data, options.column, options.data_config_name, options.data_split)
    if not torch.cuda.is_available():
        keep_freed_memory()
    out = Path(options.output_dir)
    with SaveOnSignal() as stop:
        converted = convert_and_train(
            config,
            data,
            options.training,
            out,
            [WriteRunFile(options), stop, *callbacks],
            trainer_arguments(options),
            options.resume_from_checkpoint,
            **loading,
        )
    if is_first():
        write_report(out, options, converted)
    return converted
