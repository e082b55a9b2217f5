"""A training run from its options to its folder: model, tokenizer, resolved run.yaml and report.md."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tptt.data import TextSplit, load_text

from .convert import Converted, convert_and_train
from .processes import is_first
from .run_file import RunOptions
from .skeleton import base_config, conversion_config, skeleton
from .summary import write_summary

RUN_FILE = "run.yaml"


def check_output(options: RunOptions) -> None:
    """Raises ValueError where ``out`` holds something that is not to be resumed, or is to be and cannot. The first of
    several processes looks, before it writes there."""
    out = Path(options.out)
    if not is_first():
        return
    if out.is_file():
        raise ValueError(f"out: {out} is a file, it must be a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not options.resume:
        raise ValueError(f"out: {out} is not empty; name another folder, or resume what is in it (resume: true)")
    if not (out / "trainer").is_dir() or get_last_checkpoint(str(out / "trainer")) is None:
        raise ValueError(f"resume: {out} holds no checkpoint to go on from (save_every says how often one is saved)")


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
    """
    check_output(options)
    loading = model_options(options)
    plain = options.changed(base_config=None)  # a dry run's stand-in for the base: here is the base itself
    # what does not fit each other is told before data or weights are read; on a copy, which building a model changes
    skeleton(conversion_config(plain, base_config(plain)), torch.float32)
    config = conversion_config(plain, base_config(plain), options.base_model_name)
    data: TextSplit | None = None if options.data is None else load_text(options.data, options.column)
    out = Path(options.out)
    if is_first():
        out.mkdir(parents=True, exist_ok=True)
        (out / RUN_FILE).write_text(replace(plain, resume=False).to_yaml(), encoding="utf-8")
    converted = convert_and_train(
        config, data, options.training, out, callbacks, trainer_arguments(options), options.resume, **loading
    )
    if is_first():
        write_summary(out, options, converted)
    return converted
