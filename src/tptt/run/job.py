"""A training run from its options to its folder: model, tokenizer, resolved run.yaml and report.md."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TrainerCallback

from tptt.data import TextSplit, load_text
from tptt.hf.meta_model import skeleton
from tptt.processes import is_first
from tptt.train.auto_layers import check_auto, measured_config
from tptt.train.base import row_length
from tptt.train.loop import Converted, convert_and_train

from .base import base_config, conversion_config
from .folder import WriteRunFile, check_output
from .interrupt import SaveOnInterrupt
from .options import RunOptions
from .report import write_summary


def model_options(options: RunOptions) -> dict[str, Any]:
    """What the base is loaded with.

    Raises:
        ValueError: 4 bits are asked for and bitsandbytes is not installed.
    """
    found: dict[str, Any] = {"dtype": options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)}
    if options.attn_implementation is not None:
        found["attn_implementation"] = options.attn_implementation
    if options.quantization == "4bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("quantization: 4bit needs bitsandbytes, which is not installed: pip install bitsandbytes")
        half = torch.float16 if options.dtype == "float16" else torch.bfloat16
        found["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=half if torch.cuda.is_available() else torch.float32,
        )  # fmt: skip
    return found


def trainer_arguments(options: RunOptions) -> dict[str, Any]:
    """What Trainer is given beside the settings."""
    found: dict[str, Any] = {"disable_tqdm": True}
    if options.save_every:
        found |= {"save_strategy": "steps", "save_steps": options.save_every, "save_total_limit": 1}
    if options.dtype == "float16" and torch.cuda.is_available():  # gradients of float16 need a scaled loss
        found |= {"fp16": True, "bf16": False}
    return found


def run(options: RunOptions, callbacks: Sequence[TrainerCallback] = ()) -> Converted:
    """Train as ``options`` say and write the folder ``options.out``.

    Args:
        options: of the run.
        callbacks: of the Trainer, further ones.

    Raises:
        ValueError: the folder is not empty, or base, text and settings do not fit each other.
        OSError: base or data were not found.
        KeyboardInterrupt: on Ctrl-C; once training has begun a checkpoint is saved first.
    """
    check_output(options)
    loading = model_options(options)
    plain = options.changed(base_config=None)  # a dry run's stand-in for the base: here is the base itself
    # what does not fit each other is told before data or weights are read; on a copy, which building a model changes
    config = conversion_config(plain, base_config(plain), options.base_model_name)
    auto, length = check_auto(config, options.training), row_length(options.training, config.text_config)
    skeleton(copy.deepcopy(measured_config(config, length) if auto else config), torch.float32)
    data: TextSplit | None = None if options.data is None else load_text(options.data, options.column)
    out = Path(options.out)
    with SaveOnInterrupt() as stop:
        converted = convert_and_train(
            config, data, options.training, out, [WriteRunFile(plain), stop, *callbacks], trainer_arguments(options),
            options.resume, **loading,
        )  # fmt: skip
    if is_first():
        write_summary(out, options, converted)
    return converted
