"""A base as a plain folder of transformers: weights, configuration and tokenizer, dequantised once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from .bases import Base
from .place import say
from .prepare import read_tokenizer

FOLDER = "plain"


def plain_folder(base: Base, prepared: Path) -> Path:
    """The folder with the dequantised base in float32, made where it is not there.

    Loading it takes a second where the GGUF file takes half a minute, and an older transformers reads it as well.

    Raises:
        FileNotFoundError: The base's file is not there; the message names the command that fetches it.
        ModuleNotFoundError: The package gguf is not installed.
    """
    folder = base.folder(prepared) / FOLDER
    if (folder / "config.json").exists():
        return folder
    file = base.folder(prepared) / base.gguf.file
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is not there: `python -m benchmarks.real prepare --base {base.name}` fetches it"
        )
    say(f"writing {folder} (once)")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = read_tokenizer(base, prepared)
    _dequantised(file).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, folder)
    return folder


def _dequantised(file: Path) -> Any:
    """The model in a GGUF file. The one that transformers loads refuses to be saved, so a second one takes its
    weights."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model
