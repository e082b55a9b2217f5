"""The base of a converted model: loaded by its name, from a self-contained checkpoint, or built without weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .compat import causal_lm_class, chosen_attention_implementation
from .configuration import TpttConfig, base_error

_PREFIX = "backbone."


def load_base(config: TpttConfig, **options) -> PreTrainedModel:
    """The base that ``config`` names, with its weights.

    Args:
        config: notes the ``revision``, where one is given.
        options: go to the base's ``from_pretrained`` (``dtype``, ``attn_implementation``, ``device_map``, ...); what is
            not given is taken from ``config``.

    Raises:
        OSError: the base was not found (the message says how to name it, and the token for gated ones).
        ValueError: ``config`` names no base, or it is no causal language model.
    """
    if config.base_model_name is None:
        raise ValueError("TpttConfig.base_model_name is missing: give the path or hub id of a causal language model")
    options = loading_options(config, options)
    config.base_model_revision = options.setdefault("revision", config.base_model_revision)
    try:
        return AutoModelForCausalLM.from_pretrained(config.base_model_name, **options)
    except OSError as error:
        raise base_error(config.base_model_name, error) from error
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise base_error(config.base_model_name, error) from error
        raise


def loading_options(config: TpttConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` for a base's ``from_pretrained``, with the dtype and the attention implementation that ``config``
    says.

    In a ``device_map`` names may begin with "backbone.", as they do in the converted model.
    """
    found = {k: v for k, v in options.items() if v is not None}
    dtype = found.pop("torch_dtype", None)
    for name, value in (
        ("dtype", dtype if config.dtype is None or dtype is not None else config.dtype),
        ("attn_implementation", chosen_attention_implementation(config)),
    ):
        if value is not None:
            found.setdefault(name, value)
    if isinstance(places := found.get("device_map"), dict):
        found["device_map"] = {k.removeprefix(_PREFIX): v for k, v in places.items()}
    return found


def base_without_weights(config: TpttConfig) -> PreTrainedModel:
    """The base of ``config`` as its class makes it, without loaded weights."""
    attention = chosen_attention_implementation(config) or chosen_attention_implementation(config.text_config)
    chosen = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=has_own_code(config), **chosen)


def base_of_checkpoint(config: TpttConfig, weights: Mapping[str, torch.Tensor], **options) -> PreTrainedModel:
    """The base whose ``weights``, named as in the base itself, a self-contained checkpoint holds.

    Args:
        config: of the checkpoint.
        options: as for `load_base`.

    Raises:
        RuntimeError: a weight is missing, or the base has none of such a name.
    """
    options = loading_options(config, options)
    options.pop("revision", None)
    kind = _class_of(config)
    model, report = kind.from_pretrained(
        None, config=copy.deepcopy(config.text_config), state_dict=dict(weights), output_loading_info=True, **options
    )
    refuse_misfit(report["missing_keys"], report["unexpected_keys"])
    model.config.name_or_path = config.base_model_name or ""
    return model


def _class_of(config: TpttConfig) -> type[PreTrainedModel]:
    """The class of the base of ``config``."""
    if not has_own_code(config):
        return causal_lm_class(config.text_config)
    with torch.device("meta"):
        return type(base_without_weights(config))


def has_own_code(config: TpttConfig) -> bool:
    """Whether the base of ``config`` comes with code of its own (which runs already, to be here)."""
    base = config.text_config
    return isinstance(base, PreTrainedConfig) and base.model_type not in CONFIG_MAPPING


def refuse_misfit(missing, unexpected) -> None:
    """Refuse a checkpoint that has other weights than its configuration asks for.

    Raises:
        RuntimeError: ``missing`` or ``unexpected`` names are not empty.
    """
    if missing or unexpected:
        raise RuntimeError(
            f"the checkpoint does not fit its configuration: missing {sorted(missing)[:5]} ({len(missing)}), "
            f"unexpected {sorted(unexpected)[:5]} ({len(unexpected)})"
        )
