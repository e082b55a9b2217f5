"""Saving and loading: memory and LoRA beside a named base, or everything in one self-contained checkpoint."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedConfig

from .adapters import adapters_in, moves_base
from .base_model import base_of_checkpoint, load_base, refuse_misfit
from .compat import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    adapter_status,
    as_peft_model,
    base_weight_name,
    cached_file,
    cannot_save_quantised,
    get_checkpoint_shard_files,
    held_tensors,
    is_quantised,
    offloaded_value,
    was_merged,
    with_variant,
)
from .configuration import TpttConfig, named_adapters
from .describe import describe
from .patch import weights_loaded
from .shim import AUTO_MAP, write_shim
from .slots import is_memory_parameter, memories

logger = logging.getLogger("tptt")
_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_OF_CHECKPOINT = [
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
]
"""Options that are for the checkpoint and not for its base."""
_SETTINGS = TpttConfig.own_settings() - {"dtype", "attn_implementation", "text_config"}
_BACKBONE = "backbone."


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object


class CheckpointMixin(_Model):
    """`save_pretrained` and `from_pretrained` of TpttModel."""

    def own_state_dict(self, state_dict=None) -> dict:
        """What is not the base's: memory, adapters and everything else that trains. Sharded tensors stay sharded."""
        trained = {n for n, p in self.named_parameters() if p.requires_grad}
        if self.config.get_text_config().vocab_size != self.base_vocabulary:
            trained |= self._embeddings()
        state_dict = held_tensors(self) if state_dict is None else state_dict
        return {k: v for k, v in state_dict.items() if k in trained or not self._is_of_base(k)}

    def _is_of_base(self, name: str) -> bool:
        """Whether ``name`` is that of a weight of the base, or of what its layers save beside their weights."""
        part = base_weight_name(name.removeprefix(_BACKBONE))
        if part.rpartition(".")[0] in self.base_parts:
            return True
        while part and part not in self.base_parts:
            if part in self.base_weights:
                return True
            part = part.rpartition(".")[0]
        return False

    def own_shapes(self) -> dict[str, torch.Size]:
        """Name -> shape of every weight that neither the base nor another name of a tied weight stands for."""
        aliases = self._aliases()
        return {k: v.shape for k, v in held_tensors(self).items() if k not in aliases and not self._is_of_base(k)}

    def _aliases(self) -> set[str]:
        """Further names of weights that are tied, which transformers does not know where peft gives them, and of
        buffers that several layers of an adapter share."""
        names = {n for n, _ in self.named_parameters(remove_duplicate=False)}
        tied = (names - {n for n, _ in self.named_parameters()}) & set(self.all_tied_weights_keys)
        first: dict[tuple, str] = {}
        for name, buffer in self.named_buffers(remove_duplicate=False):
            if buffer.numel() and not self._is_of_base(name):
                where = id(buffer) if buffer.is_meta else buffer.data_ptr()
                if first.setdefault((where, buffer.shape), name) != name:
                    tied.add(name)
        return tied

    def _embeddings(self) -> set[str]:
        """Names of the weights that `resize_token_embeddings` replaces; of tied ones the source alone."""
        ends = {self.get_input_embeddings(), self.get_output_embeddings()} - {None}
        places = [n for n, m in self.named_modules() if m in ends]
        names = {f"{n}.{k}" for n in places for k, _ in self.get_submodule(n).named_parameters(recurse=False)}
        return names - self._aliases()

    @property
    def _saves_all(self) -> bool:
        """Whether the base's weights are saved as well: where they train, or making an adapter has changed them, or the
        base has no name, there is no other base that could be named."""
        config, peft = self.config, as_peft_model(self.backbone)
        adapters = {} if peft is None else adapters_in(peft)
        return (
            not adapters
            or config.weights_format == "full"
            or config.base_model_name is None
            or any(moves_base(settings, at_random=True) for settings in adapters.values())
            or bool(getattr(getattr(peft, "peft_config", None), "moved_base", False))
        )

    def whole_state_dict(self) -> dict:
        """What `save_pretrained` writes, with weights that FSDP2 has sharded gathered: for all processes to call
        together."""
        found = self.state_dict() if self._saves_all else self.own_state_dict()
        return {k: x.full_tensor() if isinstance(x, DTensor) else x for k, x in found.items()}

    def save_pretrained(self, save_directory, is_main_process: bool = True, state_dict=None, **kwargs) -> None:
        """Save to a folder (or, with ``push_to_hub=True``, to the hub). All processes call it; the main one writes.

        Writes memory and adapters with the base's name, in one file whatever ``max_shard_size`` says; or everything
        where ``config.weights_format`` is "full", the base itself trains (no LoRA), LoRA was folded into it from
        outside, or making an adapter has changed it ("pissa_niter_4"). A file that ``trust_remote_code=True`` needs
        lies beside. The configuration is brought to what the model is now first.

        Raises:
            ValueError: what would be written could not be loaded again; nothing is written then.
        """
        if was_merged(self.backbone):
            self.merge_and_unload()
            state_dict = None  # of other names
        self.drop_empty_adapters()
        describe(self)
        full = self._saves_all
        self._refuse_unloadable(full)
        if strays := self.config.strays():
            logger.warning(
                "not saved, because they are no settings of a converted model: config.%s", ", config.".join(strays)
            )
        self.config.weights_format = "full" if full else "adapter"
        self.config.auto_map = dict(AUTO_MAP)
        if full:  # else it is the type that the base of that name was loaded in
            self.config.text_config.dtype = self.inner.dtype
            state_dict = self.state_dict() if state_dict is None else state_dict
        else:
            state_dict = self.own_state_dict(state_dict)
            kwargs["max_shard_size"] = 1 << 60
        kwargs["save_original_format"] = False  # its patterns for the base's names would catch the memory's
        aliases = self._aliases()
        state_dict = {k: self._value(k, v) for k, v in state_dict.items() if k not in aliases}
        folder = Path(save_directory)
        if is_main_process:
            write_shim(folder)
        elif not any(isinstance(v, DTensor) for v in state_dict.values()):
            return  # transformers would make the folder here as well; of sharded tensors every process holds a part
        super().save_pretrained(folder, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            _keep_the_newer(folder, kwargs.get("variant"))

    def _value(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, or its value where accelerate keeps that elsewhere and transformers does not look for it."""
        away = isinstance(tensor, torch.Tensor) and tensor.is_meta and not hasattr(self, "hf_device_map")
        return offloaded_value(self, name) if away else tensor

    def _refuse_unloadable(self, full: bool) -> None:
        """Refuse to save what `from_pretrained` could not make again.

        Raises:
            ValueError: as it says.
        """
        peft = as_peft_model(self.backbone)
        if full and (reason := cannot_save_quantised(self.inner)):
            raise ValueError(
                f"a self-contained checkpoint holds the base's weights, and {reason}: keep LoRA unmerged (lora_config, "
                "weights_format='adapter'), so that the base is fetched by its name"
            )
        if full and peft is not None and (merged := adapter_status(peft).merged):
            raise ValueError(
                f"adapters {merged} are folded into the base for the time being, and would be so a second time when "
                f"the "
                "checkpoint is loaded: model.backbone.unmerge_adapter() or model.merge_and_unload() comes first"
            )
        found = self.own_shapes()
        if found.keys() == self.made_of:
            return
        from .meta_model import skeleton  # which knows this class

        expected = skeleton(copy.deepcopy(self.config), self.dtype).own_shapes()
        if wrong := sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)):
            raise ValueError(
                f"this model holds {len(wrong)} weights that its configuration does not explain, and could not be "
                f"loaded "
                f"again ({', '.join(wrong[:3])}): adapters that peft put around the model, or modules that were "
                f"replaced. "
                "merge_and_unload() of the peft model around it folds its adapters in"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load a checkpoint that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            base_model_name, base_model_revision: where the base is now, if it moved.
            dtype: of the base; None and "auto" are what the checkpoint says.
            Settings of `MemoryConfig` (for example ``max_self_attn_length``) override the saved ones; the other
            keywords go to the base's ``from_pretrained``.

        Raises:
            OSError: checkpoint or base was not found.
            ValueError: a newer version made the checkpoint, or it is none of tptt.
            RuntimeError: its weights do not fit the configuration.
        """
        path = pretrained_model_name_or_path
        if kwargs.pop("state_dict", None) is not None:
            raise ValueError(
                "state_dict cannot be given with a checkpoint's name: model.load_state_dict(...) loads one"
            )
        hub = {k: kwargs[k] for k in _HUB if kwargs.get(k) is not None}
        config, new_mu = _configuration(path, config, hub, kwargs)
        if (use_cache := kwargs.pop("use_cache", None)) is not None:
            config.use_cache = use_cache
        own_code = config.load_base_code(kwargs.get("token"), kwargs.get("trust_remote_code"))
        with_report = kwargs.pop("output_loading_info", False)
        options = {k: v for k, v in kwargs.items() if k not in _OF_CHECKPOINT}
        if own_code:
            options["trust_remote_code"] = True
        given = options.pop("torch_dtype", None) if options.get("dtype") is None else options["dtype"]
        as_saved = given in (None, "auto")
        options["dtype"] = config.text_config.dtype if as_saved else given
        config.name_or_path = str(path)
        weights = _read(path, kwargs.get("variant"), hub)
        if full := config.weights_format == "full":
            own = {k: v for k, v in weights.items() if _is_own(k, config)}
            of_base = {base_weight_name(k.removeprefix(_BACKBONE)): v for k, v in weights.items() if k not in own}
            base = base_of_checkpoint(config, of_base, **options)
            with cls.without_weights():
                model = cls(config, base=base)
            weights = own
        else:
            base = load_base(config, **options)
            if (
                as_saved and config.dtype not in (None, base.dtype) and not is_quantised(base)
            ):  # cast after it was loaded
                base.to(config.dtype)
            model = cls(config, base=base)
            _resize(model, weights)
        report = _load_own(model, weights, full)
        model.generation_config = _generation_config(path, hub) or model.generation_config
        model.eval()
        if new_mu:  # buffers, which the saved ones have just overwritten
            model.take_mag_weights()
        return (model, report) if with_report else model


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


def _keep_the_newer(folder: Path, variant: str | None) -> None:
    """Of one file of weights and an index of several remove what an earlier save left: the one file would be read."""
    found = [
        p for n in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if (p := folder / with_variant(n, variant)).exists()
    ]
    if len(found) > 1:
        min(found, key=lambda p: p.stat().st_mtime_ns).unlink()


def _resize(model, weights: Mapping[str, torch.Tensor]) -> None:
    """Give the embeddings as many rows as the checkpoint holds."""
    rows = {weights[n].shape[0] for n in model._embeddings() & set(weights)}
    if rows and rows != {model.config.get_text_config().vocab_size}:
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)  # the rows are in the checkpoint


def _load_own(model, weights: dict[str, torch.Tensor], full: bool) -> dict[str, Any]:
    """Load what is not the base's; in a ``full`` checkpoint that trains in the base is there already.

    Raises:
        RuntimeError: something is missing, or not known to the model.
        ValueError: a weight belongs to a module of the base that is offloaded.
    """
    away = sorted(k for k, v in held_tensors(model).items() if k in weights and v.is_meta)
    if away:
        raise ValueError(
            f"{', '.join(away[:3])} ({len(away)}): the checkpoint holds weights of modules that device_map offloads; "
            f"give a "
            "device_map that keeps them on a device"
        )
    _cast_own(model, weights)
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    expected = set(model.own_shapes()) if full else set(model.own_state_dict()) - model._aliases()
    missing = expected - set(weights)
    refuse_misfit(missing, unexpected)
    weights_loaded(model)
    return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": set(), "error_msgs": []}


def _cast_own(model, weights: Mapping[str, torch.Tensor]) -> None:
    """Give what is not the base's the types that the checkpoint holds: a model may have been cast as a whole."""
    for module in memories(model):
        name = next((n for n, p in model.named_parameters() if p is module.output_scale and n in weights), None)
        if name is not None:
            module.to(weights[name].dtype)
    for name, parameter in model.named_parameters():
        if name in weights and not model._is_of_base(name):
            parameter.data = parameter.data.to(weights[name].dtype)
