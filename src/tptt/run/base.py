"""The base and the configuration that the options of a run name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from tptt.assets import BASE
from tptt.convert.lora import lora_config
from tptt.hf.configuration import TpttConfig, read_base_config
from tptt.train.base import row_length
from tptt.train.window import decided_window

from .options import RunOptions


def base_name(options: RunOptions) -> str:
    """Path or hub id of the run's base."""
    return str(BASE) if options.base_model is None else options.base_model


def base_config(options: RunOptions) -> PreTrainedConfig:
    """The base's configuration: from the file ``base_config``, or from where ``base_model`` says.

    In a file, keys that begin with an underscore are remarks.

    Raises:
        OSError: there is none.
        ValueError: the file is not a configuration, or the base has code of its own that may not run.
    """
    if options.base_config is not None:
        return config_from_file(options.base_config)
    name = base_name(options)
    here = f"a relative path counts from {Path.cwd()}, and a base that has moved is named by base_model"
    return read_base_config(
        name,
        options.base_gguf_file,
        f"{here}; for a gated or private model set HF_TOKEN",
        revision=options.base_model_revision,
        trust_remote_code=options.trust_remote_code,
    )


def config_from_file(path: str | Path) -> PreTrainedConfig:
    """The configuration in the JSON file ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not the configuration of a model that transformers knows.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        plain = {k: v for k, v in found.items() if not k.startswith("_")}
        return AutoConfig.for_model(plain.pop("model_type"), **plain)
    except (json.JSONDecodeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no model's configuration with a model_type that transformers knows: {error}"
        ) from error


def decided(options: RunOptions, base: PreTrainedConfig) -> RunOptions:
    """``options`` for the base of that configuration, with a number of tokens, or None, in the place of
    ``max_self_attn_length: auto``."""
    seq_len = row_length(options.training, base)
    return options.changed(max_self_attn_length=decided_window(options.memory, seq_len))


def conversion_config(options: RunOptions, base: PreTrainedConfig, name: str | None = None) -> TpttConfig:
    """The converted model's configuration; ``name`` is the base's, None for one that is not to be loaded."""
    lora: dict[str, Any] | None = None
    if options.lora_r:
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(base, trust_remote_code=options.trust_remote_code)
        lora = lora_config(
            plain,
            options.lora_r,
            options.lora_alpha,
            options.lora_dropout,
            options.lora_target_modules,
            options.memory.attention_layout,
        )
    return TpttConfig(
        text_config=base,
        base_model_name=name,
        base_model_revision=options.base_model_revision,
        base_gguf_file=None if name is None else options.base_gguf_file,
        lora_config=lora,
        **vars(options.memory),
    )
