"""Loading a converted model: its configuration, its base, and what the checkpoint holds beside the base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig

from .base_model import base_of_checkpoint, load_base, refuse_misfit
from .compat import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    base_weight_name,
    cached_file,
    get_checkpoint_shard_files,
    held_tensors,
    is_quantised,
    with_variant,
)
from .configuration import TpttConfig, named_adapters
from .patch import weights_loaded
from .slots import is_memory_parameter, memories

if TYPE_CHECKING:
    from .model import TpttModel

_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_OF_CHECKPOINT = (
    "adapter_kwargs",
    "_from_auto",
    "_from_pipeline",
    "trust_remote_code",
    "revision",
    "subfolder",
    "use_safetensors",
    "weights_only",
    "_commit_hash",
    "code_revision",
    "force_download",
    "variant",
)
"""Options that are for the checkpoint and not for its base."""
_SETTINGS = TpttConfig.own_settings() - {"dtype", "attn_implementation", "text_config"}
_BACKBONE = "backbone."


def load_checkpoint(
    kind: type[TpttModel], path: Any, config: Any, options: dict[str, Any]
) -> tuple[TpttModel, dict[str, Any]]:
    """The model of class ``kind`` in the checkpoint at ``path``, and a report of its weights as transformers makes it.

    Args:
        config: a configuration, the path of one, or None for the checkpoint's own.
        options: those of `TpttModel.from_pretrained`.
    """
    if options.pop("state_dict", None) is not None:
        raise ValueError("state_dict cannot be given with a checkpoint's name: model.load_state_dict(...) loads one")
    hub = {k: options[k] for k in _HUB if options.get(k) is not None}
    config, new_mu = _configuration(path, config, hub, options)
    if (use_cache := options.pop("use_cache", None)) is not None:
        config.use_cache = use_cache
    own_code = config.load_base_code(options.get("token"), options.get("trust_remote_code"))
    config.name_or_path = str(path)
    weights = _read(path, options.get("variant"), hub)
    of_base = {k: v for k, v in options.items() if k not in _OF_CHECKPOINT}
    if own_code:
        of_base["trust_remote_code"] = True
    if config.weights_format == "full":
        model, report = _self_contained(kind, config, weights, of_base)
    else:
        model, report = _beside_its_base(kind, config, weights, of_base)
    model.generation_config = _generation_config(path, hub) or model.generation_config
    model.eval()
    if new_mu:  # buffers, which the saved ones have just overwritten
        model.take_mag_weights()
    return model, report


def _self_contained(
    kind: type[TpttModel], config: TpttConfig, weights: dict[str, torch.Tensor], options: dict[str, Any]
) -> tuple[TpttModel, dict[str, Any]]:
    """A model whose checkpoint holds the base as well."""
    own = {k: v for k, v in weights.items() if _is_own(k, config)}
    of_base = {base_weight_name(k.removeprefix(_BACKBONE)): v for k, v in weights.items() if k not in own}
    options["dtype"] = _given_dtype(options) or _base_dtype(config)
    base = base_of_checkpoint(config, of_base, **options)
    with kind.without_weights():
        model = kind(config, base=base)
    return model, _load_own(model, own, set(model.own_shapes()))


def _beside_its_base(
    kind: type[TpttModel], config: TpttConfig, weights: dict[str, torch.Tensor], options: dict[str, Any]
) -> tuple[TpttModel, dict[str, Any]]:
    """A model whose base is fetched by its name."""
    given = _given_dtype(options)
    options["dtype"] = given or _base_dtype(config)
    base = load_base(config, **options)
    if given is None and config.dtype not in (None, base.dtype) and not is_quantised(base):
        base.to(config.dtype)  # so it was when the checkpoint was made: loaded, and then cast
    model = kind(config, base=base)
    _resize(model, weights)
    return model, _load_own(model, weights, set(model.own_state_dict()) - model.aliases())


def _base_dtype(config: TpttConfig) -> Any:
    """The type that the base is loaded in."""
    return getattr(config.text_config, "dtype", None)


def _given_dtype(options: dict[str, Any]) -> Any:
    """Take the dtype out of ``options``; None: it is left to the checkpoint."""
    given, older = options.pop("dtype", None), options.pop("torch_dtype", None)
    given = older if given is None else given
    return None if given == "auto" else given


def _configuration(path, config, hub: dict, kwargs: dict) -> tuple[TpttConfig, bool]:
    """The configuration of the checkpoint at ``path`` with the settings in ``kwargs``, which are taken out of it; and
    whether its Memory-as-Gate weights are not the saved ones."""
    changes = {k: kwargs.pop(k) for k in list(kwargs) if k in _SETTINGS}
    saved = TpttConfig.get_config_dict(path, **hub)[0]
    if not saved:
        raise OSError(f"{str(path)!r} holds no config.json: it is no checkpoint")
    if saved.get("model_type") != TpttConfig.model_type:
        raise ValueError(
            f"{str(path)!r} is no tptt checkpoint but a model of type {saved.get('model_type')!r}: "
            f"TpttModel(TpttConfig(base_model_name={str(path)!r})) gives it a memory"
        )
    if isinstance(config, TpttConfig):
        found = copy.deepcopy(config)
    elif isinstance(config, PreTrainedConfig):
        raise ValueError(f"config must be a TpttConfig or its folder, got a {type(config).__name__}")
    else:
        found = TpttConfig.from_pretrained(path if config is None else config, **hub)
    if changes:
        found = found.with_settings(changes)
    if found.mag_weight != saved.get("mag_weight", found.mag_weight) or "mag_weight" in changes:
        found.layer_mag_weights = None
        return found, True
    return found, found.layer_mag_weights != saved.get("layer_mag_weights")


def _is_own(name: str, config: TpttConfig) -> bool:
    """Whether a self-contained checkpoint's weight ``name`` is the memory's or an adapter's."""
    adapters = named_adapters(config.lora_config)
    return is_memory_parameter(name) or not adapters.keys().isdisjoint(name.removeprefix(_BACKBONE).split("."))


def _generation_config(path, hub: dict) -> GenerationConfig | None:
    """How the checkpoint at ``path`` generates by default; None: it does not say."""
    try:
        return GenerationConfig.from_pretrained(path, **hub)
    except OSError:
        return None


def _read(path, variant: str | None, hub: dict) -> dict[str, torch.Tensor]:
    """The weights of the checkpoint at ``path``, in one file or several.

    Raises:
        OSError: there are none.
    """
    quiet = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(path, with_variant(SAFE_WEIGHTS_INDEX_NAME, variant), **hub, **quiet)
    one = cached_file(path, with_variant(SAFE_WEIGHTS_NAME, variant), **hub, **({} if index is None else quiet))
    if one is not None:
        return load_file(one)
    files, _ = get_checkpoint_shard_files(path, index, **hub)
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _resize(model: TpttModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Give the embeddings as many rows as the checkpoint holds."""
    rows = {weights[n].shape[0] for n in model.embeddings() & set(weights)}
    if rows and rows != {model.config.get_text_config().vocab_size}:
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)  # the rows are in the checkpoint


def _load_own(model: TpttModel, weights: dict[str, torch.Tensor], expected: set[str]) -> dict[str, Any]:
    """Load ``weights``, which are the ``expected`` ones.

    Raises:
        RuntimeError: something is missing, or not known to the model.
        ValueError: a weight belongs to a module of the base that is offloaded.
    """
    away = sorted(k for k, v in held_tensors(model).items() if k in weights and v.is_meta)
    if away:
        raise ValueError(
            f"{', '.join(away[:3])} ({len(away)}): the checkpoint holds weights of modules that device_map offloads; "
            "give a device_map that keeps them on a device"
        )
    _cast_own(model, weights)
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    missing = expected - set(weights)
    refuse_misfit(missing, unexpected)
    weights_loaded(model)
    return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": set(), "error_msgs": []}


def _cast_own(model: TpttModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Cast what is not the base's to the types in the checkpoint: the model may have been cast before it was saved."""
    for module in memories(model):
        name = next((n for n, p in model.named_parameters() if p is module.output_scale and n in weights), None)
        if name is not None:
            module.to(weights[name].dtype)
    for name, parameter in model.named_parameters():
        if name in weights and not model.is_of_base(name):
            parameter.data = parameter.data.to(weights[name].dtype)
