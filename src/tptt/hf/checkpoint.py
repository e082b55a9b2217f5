"""Saving and loading: memory and LoRA beside a named base, or everything in one self-contained checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from tptt.config import MemoryConfig

from .compat import forget_auto_class, is_lora_parameter, is_trained_copy, was_merged, with_variant
from .configuration import TpttConfig
from .patch import set_mag_weight
from .slots import is_memory_parameter

SHIM = "modeling_tptt.py"
_SHIM_TEXT = '''"""Loads this checkpoint through the installed tptt package; needed by trust_remote_code=True only."""

_HINT = (
    "this checkpoint needs the tptt package, version 1.0 or newer, that made it. The package called tptt on the public "
    "index (0.x) is another, older project: uninstall that one and install tptt from its repository, "
    "for example with pip install ./tptt"
)
try:
    import tptt
    from tptt import TpttConfig, TpttModel
except ImportError as error:
    raise ImportError(_HINT) from error
if int(str(getattr(tptt, "__version__", "0")).split(".")[0]) < 1:
    raise ImportError(_HINT + f" (found {getattr(tptt, '__version__', 'no version')})")

__all__ = ["TpttConfig", "TpttModel"]
'''
_AUTO_MAP = {
    "AutoConfig": "modeling_tptt.TpttConfig",
    "AutoModelForCausalLM": "modeling_tptt.TpttModel",
}
_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_NOT_FOR_BASE = (
    "adapter_kwargs", "_from_auto", "_from_pipeline", "trust_remote_code", "revision", "subfolder", "state_dict",
    "use_safetensors", "weights_only", "_commit_hash", "code_revision", "force_download",
)  # fmt: skip
_OWN_SETTINGS = {"base_model_name", "base_model_revision", *MemoryConfig.__dataclass_fields__}


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Model
else:
    _Model = object


class CheckpointMixin(_Model):
    """`save_pretrained` and `from_pretrained` of TpttModel."""

    def own_state_dict(self, state_dict=None) -> dict:
        """What is not the base's: the memory, LoRA and everything else that trains. Sharded tensors stay sharded."""
        own = {n for n, p in self.named_parameters() if p.requires_grad}
        if self.config.text_config.vocab_size != self.base_vocabulary:
            own |= self._embeddings()
        state_dict = self.state_dict() if state_dict is None else state_dict
        kinds = (is_memory_parameter, is_lora_parameter, is_trained_copy)
        return {k: v for k, v in state_dict.items() if k in own or any(is_kind(k) for is_kind in kinds)}

    def _aliases(self) -> set[str]:
        """Further names of weights that are tied: transformers does not know those that peft gives them."""
        names = {n for n, _ in self.named_parameters(remove_duplicate=False)}
        return (names - {n for n, _ in self.named_parameters()}) & set(self.all_tied_weights_keys)

    def _embeddings(self) -> set[str]:
        """Names of the weights that `resize_token_embeddings` replaces; of tied ones the source alone."""
        ends = {self.get_input_embeddings(), self.get_output_embeddings()} - {None}
        places = [n for n, m in self.named_modules() if m in ends]
        names = {f"{n}.{k}" for n in places for k, _ in self.get_submodule(n).named_parameters(recurse=False)}
        return names - self._aliases()

    @property
    def _was_merged(self) -> bool:
        """Whether ``merge_and_unload`` of a peft model around this one has folded its LoRA into the base as well."""
        return was_merged(self.backbone)

    @property
    def _saves_all(self) -> bool:
        """Whether the base's weights are saved as well: where they train, or LoRA's start has moved them at random, there is no
        other base that could be named."""
        lora = self.config.lora_config
        return (
            lora is None
            or self.config.weights_format == "full"
            or str(lora.get("init_lora_weights")).startswith("pissa_niter")
        )

    def whole_state_dict(self) -> dict:
        """What `save_pretrained` writes, of weights that FSDP2 has sharded the whole: for all processes to call together."""
        found = self.state_dict() if self._saves_all else self.own_state_dict()
        return {k: x.full_tensor() if isinstance(x, DTensor) else x for k, x in found.items()}

    def save_pretrained(self, save_directory, state_dict=None, **kwargs) -> None:
        """Save to a folder (or, with ``push_to_hub=True``, to the hub).

        Writes memory and LoRA with the base's name, in one file whatever ``max_shard_size`` says, or everything where
        ``config.weights_format`` is "full", the base itself trains (no LoRA), LoRA was folded into it from outside or moved
        it at random ("pissa_niter_4"); and the shim that ``trust_remote_code=True`` needs.
        """
        if self._was_merged:
            self.merge_and_unload()
            state_dict = None  # of other names
        if self._saves_all:
            self.config.weights_format = "full"
            state_dict = self.state_dict() if state_dict is None else state_dict
        else:
            state_dict = self.own_state_dict(state_dict)
            kwargs |= {"save_original_format": False, "max_shard_size": 1 << 60}
        aliases = self._aliases()
        state_dict = {k: v for k, v in state_dict.items() if k not in aliases}
        # an Auto class that loaded this model asks for its shim's copy; it is written anew below instead
        forget_auto_class(type(self), type(self.config))
        self.config.auto_map = dict(_AUTO_MAP)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / SHIM).write_text(_SHIM_TEXT, encoding="utf-8")
        quantizer = self.__dict__.pop("hf_quantizer", None)
        try:
            super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            if quantizer is not None:
                self.hf_quantizer = quantizer
        if kwargs.get("is_main_process", True):
            _keep_the_newer(Path(save_directory), kwargs.get("variant"))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load a checkpoint that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            base_model_name, base_model_revision: where the base is now, if it moved.
            Settings of `MemoryConfig` (for example ``max_self_attn_length``) override the saved ones; the other
            keywords go to the base's ``from_pretrained``.

        Raises:
            OSError: checkpoint or base was not found.
            ValueError: a newer version made the checkpoint, or it is none of tptt.
            RuntimeError: its weights do not fit the configuration.
        """
        path = pretrained_model_name_or_path
        hub = {k: kwargs[k] for k in _HUB if kwargs.get(k) is not None}
        changes = {k: kwargs.pop(k) for k in list(kwargs) if k in _OWN_SETTINGS}
        saved = TpttConfig.get_config_dict(path, **hub)[0]
        if saved.get("model_type") != TpttConfig.model_type:
            raise ValueError(
                f"{str(path)!r} is no tptt checkpoint but a model of type {saved.get('model_type')!r}: "
                f"TpttModel(TpttConfig(base_model_name={str(path)!r})) gives it a memory"
            )
        if not isinstance(config, PreTrainedConfig):
            config = TpttConfig.from_pretrained(path, **hub)
        elif config.mag_weight != saved.get("mag_weight", config.mag_weight):
            changes.setdefault("mag_weight", config.mag_weight)  # an Auto class puts it into the configuration
        for name, value in changes.items():
            setattr(config, name, value)
        config.memory_config()
        own_code = config.load_base_code(kwargs.get("token"), kwargs.get("trust_remote_code"))
        with_report = kwargs.pop("output_loading_info", False)
        if config.weights_format == "full":
            model, report = cls._load_full(path, *args, config=config, **kwargs)
            _refuse_misfit(report["missing_keys"], report["unexpected_keys"])
        else:
            for name in _NOT_FOR_BASE:
                kwargs.pop(name, None)
            if own_code:
                kwargs["trust_remote_code"] = True
            for name in ("dtype", "torch_dtype"):
                if kwargs.get(name) == "auto":  # which would be the base's own, not what was trained
                    kwargs[name] = config.dtype
            config.name_or_path = str(path)
            file = cached_file(path, with_variant(SAFE_WEIGHTS_NAME, kwargs.pop("variant", None)), **hub)
            model = cls._for_adapter(config, **kwargs)
            report = _load_own(model, load_file(file))
            model.eval()
        if "mag_weight" in changes:  # a buffer, which the saved one has just overwritten
            set_mag_weight(model, config.mag_weight)
        return (model, report) if with_report else model


def _keep_the_newer(folder: Path, variant: str | None) -> None:
    """Of one file of weights and an index of several remove what an earlier save left: the one file would be read."""
    found = [
        p for n in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if (p := folder / with_variant(n, variant)).exists()
    ]
    if len(found) > 1:
        min(found, key=lambda p: p.stat().st_mtime_ns).unlink()


def _load_own(model, weights: dict) -> dict:
    rows = {weights[n].shape[0] for n in model._embeddings() & set(weights)}
    if rows and rows != {model.config.text_config.vocab_size}:
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)  # the rows are in the checkpoint
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    missing = set(model.own_state_dict()) - model._aliases() - set(weights)
    _refuse_misfit(missing, unexpected)
    return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": set(), "error_msgs": []}


def _refuse_misfit(missing, unexpected) -> None:
    if missing or unexpected:
        raise RuntimeError(
            "the checkpoint does not fit its configuration: "
            f"missing {sorted(missing)[:5]} ({len(missing)}), unexpected {sorted(unexpected)[:5]} ({len(unexpected)})"
        )
