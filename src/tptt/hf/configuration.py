"""TpttConfig: what a converted model is, as a Hugging Face configuration."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from tptt.config import MemoryConfig, one_of
from tptt.version import __version__

from .config_compat import SubConfigSpec


def jsonable(value: Any) -> Any:
    """``value`` with sets as sorted lists and enums as their values, as JSON needs it (LoraConfig.to_dict has both)."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value


# what transformers itself puts into a configuration beside its declared fields
_HF_KEYS = {
    "torch_dtype", "name_or_path", "_name_or_path", "_commit_hash", "output_attentions", "attn_implementation",
    "_attn_implementation", "experts_implementation", "_attn_implementation_internal", "_experts_implementation_internal",
    "per_layer_config", "num_labels", "auto_map", "model_type", "transformers_version", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings",
    "max_position_embeddings", "token", "trust_remote_code", "quantization_config",
}  # fmt: skip
_SHARED = (
    "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "hidden_size", "num_hidden_layers",
    "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip


class UnknownBaseConfig(PreTrainedConfig):
    """What a checkpoint holds of a base with code of its own, ``saved``, until that code may run."""

    saved: dict | None = None


class TpttConfig(PreTrainedConfig):
    """A base model, its memory and its LoRA.

    Args:
        base_model_name: path or hub id of the base causal LM.
        base_model_revision: branch, tag or commit of it.
        lora_config: ``LoraConfig(...)`` or its ``to_dict()`` (any peft configuration), or None.
        text_config: the base's own configuration; read from the base when not given.
        weights_format: "adapter" (memory and LoRA; the base is fetched by name) or "full" (self-contained).
        tptt_version: the version that made the checkpoint.
        The other arguments are those of `MemoryConfig`.

    Raises:
        ValueError: a key or value is not valid.
        OSError: the base model was not found.
    """

    model_type = "tptt"
    sub_configs_defaults = {"text_config": SubConfigSpec(AutoConfig, model_type="llama", optional=True)}
    text_config: dict | PreTrainedConfig | None = None
    base_model_name: str | None = None
    base_model_revision: str | None = None
    lora_config: Any = None
    weights_format: str = "adapter"
    tptt_version: str = __version__
    operator: str = MemoryConfig.operator
    feature_map: str = MemoryConfig.feature_map
    feature_width: int | list | tuple = MemoryConfig.feature_width
    write_gate: str = MemoryConfig.write_gate
    state_activation_every: int = MemoryConfig.state_activation_every
    states: str = MemoryConfig.states
    mix_gate: str = MemoryConfig.mix_gate
    cross_gate: bool = MemoryConfig.cross_gate
    mag_weight: float = MemoryConfig.mag_weight
    max_self_attn_length: int | str | None = None
    sink_tokens: int = 0
    layers: str | int | list | tuple = "all"
    memory_only_layers: str | list | tuple = ()
    bidirectional: bool = False
    attention_layout: str | dict | None = None

    def __post_init__(self, **kwargs):
        from . import model  # noqa: F401  # its import lets AutoModelForCausalLM know the model of this configuration

        _check_version(self.tptt_version)
        unknown = sorted(k for k in kwargs if k not in _HF_KEYS and not hasattr(PreTrainedConfig, k))
        if unknown:
            valid = sorted({f.name for f in fields(MemoryConfig)} | _OWN)
            raise ValueError(f"unknown configuration key {', '.join(unknown)}; valid are {', '.join(valid)}")
        one_of("weights_format", self.weights_format, ("adapter", "full"))
        if self.lora_config is not None:
            self.lora_config = _peft_settings(self.lora_config)
        if self.base_model_name is not None:
            self.base_model_name = str(self.base_model_name)
        self.memory_config()
        token = kwargs.pop("token", None)
        trust = kwargs.pop("trust_remote_code", None)
        if self.text_config is None and self.base_model_name is not None:
            self.text_config = _base_config(self.base_model_name, self.base_model_revision, token, trust)
        elif isinstance(self.text_config, dict) and self.text_config.get("model_type", "llama") not in CONFIG_MAPPING:
            self.text_config = UnknownBaseConfig(saved=self.text_config)
        super().__post_init__(**kwargs)
        if self.text_config is None or isinstance(self.text_config, UnknownBaseConfig):
            return
        for name in _SHARED:
            if hasattr(self.text_config, name):
                setattr(self, name, getattr(self.text_config, name))

    def load_base_code(self, token: str | bool | None, trust: bool | None) -> bool:
        """Of a base with code of its own get the configuration's class; returns whether it is such a base.

        Raises:
            ValueError: it is, and ``trust`` is not given.
            OSError: the base was not found.
        """
        if not isinstance(self.text_config, UnknownBaseConfig):
            return False
        saved = self.text_config.saved or {}
        if not trust:
            raise ValueError(
                f"the base is of type {saved.get('model_type')!r}, which transformers does not know: "
                f"trust_remote_code=True lets the code of {self.base_model_name!r} run"
            )
        base = type(_base_config(str(self.base_model_name), self.base_model_revision, token, trust)).from_dict(saved)
        base.name_or_path = self.base_model_name
        self.text_config = base
        return True

    def memory_config(self) -> MemoryConfig:
        """The memory's part of this configuration, validated."""
        return MemoryConfig(**{f.name: getattr(self, f.name) for f in fields(MemoryConfig)})

    def to_dict(self) -> dict[str, Any]:
        out = super().to_dict()
        if isinstance(out.get("text_config"), dict):
            out["text_config"].pop("quantization_config", None)  # the saved weights are not the quantised ones
        return out


_OWN = {"text_config", "base_model_name", "base_model_revision", "lora_config", "weights_format", "dtype"}


def _peft_settings(given: Any) -> dict[str, Any]:
    settings = given.to_dict() if hasattr(given, "to_dict") else given
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise ValueError(f"lora_config must be a peft configuration or its to_dict(), got {given!r}")
    return jsonable(settings)


def _check_version(found: str) -> None:
    def order(version: str) -> tuple[int, ...]:
        return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in str(version).split(".")[:2])

    if order(found) > order(__version__):
        raise ValueError(
            f"this checkpoint was made by tptt {found}; installed is {__version__}: update tptt to load it"
        )


def _base_config(name: str, revision: str | None, token: str | bool | None, trust: bool | None) -> PreTrainedConfig:
    options = {"revision": revision, "token": token, "trust_remote_code": trust}
    try:
        return AutoConfig.from_pretrained(name, **{k: v for k, v in options.items() if v is not None})
    except (OSError, ValueError) as error:
        raise base_error(name, error) from error


_IN_CODE = (
    "for a gated or private model pass token=...; where the base of a checkpoint has moved pass "
    "base_model_name=NEW_PLACE to TpttModel.from_pretrained"
)


def base_error(name: str, error: Exception, what_to_do: str = _IN_CODE) -> Exception:
    """The error for a base model that could not be loaded, saying what to do."""
    if isinstance(error, OSError):
        return OSError(
            f"base model {name!r} was not found: no folder of that name with a config.json, and the hub did not give "
            f"it. Check the name; {what_to_do}. ({error})"
        )
    return ValueError(f"base model {name!r} cannot be used as a causal language model: {error}")


AutoConfig.register(TpttConfig.model_type, TpttConfig, exist_ok=True)
