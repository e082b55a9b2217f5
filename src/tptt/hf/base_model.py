"""The base of a converted model: loaded by its name, from a self-contained checkpoint, or built without weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .compat import causal_lm_class, chosen_attention_implementation, forget_gguf
from .configuration import TpttConfig, base_error
from .gguf_base import checked_gguf, gguf_config, sha256_of
from .gguf_place import GgufPlace

_PREFIX = "backbone."


def load_base(config: TpttConfig, **options) -> PreTrainedModel:
    """The base that ``config`` names, with its weights.

    Args:
        config: notes the ``revision``, where one is given, and the SHA-256 of a GGUF file.
        options: go to the base's ``from_pretrained`` (``dtype``, ``attn_implementation``, ``device_map``, ...). The
            dtype and the attention implementation are ``config``'s where they are not given.

    Raises:
        OSError: the base was not found (the message says how to name it, and the token for gated ones).
        ValueError: ``config`` names no base, it is no causal language model, or a GGUF file that is damaged, not
            supported, or another one than ``config`` notes.
        ImportError: the base is a GGUF file, and the package ``gguf`` is missing.
    """
    if config.base_model_name is None:
        raise ValueError("TpttConfig.base_model_name is missing: give the path or hub id of a causal language model")
    options = loading_options(config, options)
    config.base_model_revision = options.setdefault("revision", config.base_model_revision)
    if (place := config.gguf_place()) is not None:
        return _load_gguf(config, place, options)
    if config.base_sha256 is not None:
        raise ValueError(
            f"the base was a GGUF file of SHA-256 {config.base_sha256}, and {config.base_model_name!r} is none: give "
            "base_model_name=PATH_OF_THE_FILE"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(config.base_model_name, **options)
    except OSError as error:
        raise base_error(config.base_model_name, error) from error
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise base_error(config.base_model_name, error) from error
        raise


def _load_gguf(config: TpttConfig, place: GgufPlace, options: dict[str, Any]) -> PreTrainedModel:
    """The base in a GGUF file, as a plain model; ``config`` notes the file's SHA-256."""
    if options.pop("quantization_config", None) is not None:
        raise ValueError(f"the base {place} is a GGUF file, read as floats: it cannot be quantised once more")
    path = checked_gguf(place, **options)
    found = sha256_of(path)
    if config.base_sha256 not in (None, found):
        raise ValueError(
            f"{place} is another file than the base this was made from: its SHA-256 is {found}, the base's was "
            f"{config.base_sha256}. Give base_model_name=PATH_OF_THE_FILE"
        )
    config.base_sha256 = found
    options.pop("subfolder", None)  # the file is found already
    try:
        base, report = AutoModelForCausalLM.from_pretrained(
            str(path.parent), config=gguf_config(path), gguf_file=path.name, output_loading_info=True, **options
        )
    except (OSError, ValueError, NotImplementedError) as error:
        raise base_error(str(place), error if isinstance(error, OSError) else ValueError(error)) from error
    if missing := sorted(report["missing_keys"]) + sorted(x[0] for x in report["mismatched_keys"]):
        raise ValueError(
            f"the GGUF file {place} cannot be used: it lacks weights of its {base.config.model_type} model or has them "
            f"in another shape: {', '.join(missing[:3])} ({len(missing)})"
        )
    forget_gguf(base)
    return base


def loading_options(config: TpttConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` for a base's ``from_pretrained``, with ``config``'s dtype and attention implementation.

    The names in a ``device_map`` may begin with "backbone.", as they do in the converted model.
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
