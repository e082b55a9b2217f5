"""The base and the configuration that the options of a run name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from tptt.convert.lora import lora_config
from tptt.hf.configuration import TpttConfig, base_error

from .options import RunOptions


def base_config(options: RunOptions) -> PreTrainedConfig:
    """The base's configuration: from ``base_config``, or from where its name says.

    In a file, keys that begin with an underscore are remarks.

    Raises:
        OSError: there is none.
        ValueError: the file is not a configuration, or no base is named.
    """
    if options.base_config is not None:
        return config_from_file(options.base_config)
    if options.base_model_name is None:
        raise ValueError("base_model_name is missing: the path or hub id of a causal language model")
    try:
        return AutoConfig.from_pretrained(options.base_model_name, revision=options.base_model_revision)
    except (OSError, ValueError) as error:
        here = f"a relative path counts from {Path.cwd()}, and a base that has moved is named by base_model_name"
        token = "for a gated or private model set HF_TOKEN"
        raise base_error(options.base_model_name, error, f"{here}; {token}") from error


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


def conversion_config(options: RunOptions, base: PreTrainedConfig, name: str | None = None) -> TpttConfig:
    """The converted model's configuration; ``name`` is the base's, None for one that is not to be loaded."""
    lora: dict[str, Any] | None = None
    if options.lora_rank:
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(base)
        lora = lora_config(
            plain, options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_targets,
            options.memory.attention_layout,
        )  # fmt: skip
    return TpttConfig(
        text_config=base, base_model_name=name, base_model_revision=options.base_model_revision, lora_config=lora,
        **vars(options.memory),
    )  # fmt: skip
