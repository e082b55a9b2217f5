"""TpttConfig: what a converted model is, as a Hugging Face configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from tptt.config import MemoryConfig, check_mag_weight, one_of
from tptt.version import __version__

from .config_compat import SubConfigSpec
from .gguf_place import GgufPlace, gguf_place


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


_OF_TRANSFORMERS = frozenset(
    [
        "torch_dtype",
        "name_or_path",
        "_name_or_path",
        "_commit_hash",
        "output_attentions",
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "per_layer_config",
        "num_labels",
        "auto_map",
        "model_type",
        "transformers_version",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "token",
        "trust_remote_code",
        "quantization_config",
    ]
)
"""Keys that transformers puts into a configuration beside its declared fields, and those of loading."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DERIVED = ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings", "max_position_embeddings")
"""What a configuration repeats of its base, for those who look for it there."""


class UnknownBaseConfig(PreTrainedConfig):
    """What a checkpoint holds of a base with code of its own, ``saved``, until that code may run."""

    saved: dict | None = None


class TpttConfig(PreTrainedConfig):
    """A base model, its memory and its LoRA.

    Args:
        base_model_name: path or hub id of the base causal LM, or path of a ``.gguf`` file.
        base_model_revision: branch, tag or commit of it.
        base_gguf_file: name of a GGUF file in the folder or hub repository ``base_model_name``. The path of a ``.gguf``
            file may also be the ``base_model_name`` itself.
        base_sha256: SHA-256 of the base's GGUF file, noted when it is loaded; another file is refused then.
        lora_config: ``LoraConfig(...)`` or its ``to_dict()``, a configuration of another method of
            `tptt.hf.adapter_settings.PEFT_TYPES`, several of them by the names of their adapters, or None.
        active_adapters: names of those adapters that are at work; None: the first.
        text_config: the base's own configuration; read from the base when not given.
        weights_format: "adapter" (memory and LoRA; the base is fetched by name) or "full" (self-contained).
        layer_mag_weights: where the layers differ in their Memory-as-Gate weight, that of each layer with a memory, in
            order; None: ``mag_weight`` holds for all.
        tptt_version: the version that made the checkpoint.
        dtype: torch's name of the type that the base is loaded in; None: that of its own checkpoint.
        attn_implementation: what computes the base's softmax, as transformers names it.
        The other arguments are those of `MemoryConfig`.

    ``vocab_size``, ``hidden_size`` and the like are read from the base and cannot be set.

    Raises:
        ValueError: a key or value is not valid.
        OSError: the base model was not found.
    """

    model_type = "tptt"
    sub_configs_defaults = {"text_config": SubConfigSpec(AutoConfig, model_type="llama", optional=True)}
    text_config: dict | PreTrainedConfig | None = None
    base_model_name: str | None = None
    base_model_revision: str | None = None
    base_gguf_file: str | None = None
    base_sha256: str | None = None
    lora_config: Any = None
    active_adapters: list | tuple | None = None
    weights_format: str = "adapter"
    layer_mag_weights: list | tuple | None = None
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
        derived = {k: kwargs.pop(k) for k in _DERIVED if k in kwargs}
        tokens = {k: kwargs.pop(k) for k in _TOKENS if k in kwargs}
        if unknown := sorted(set(kwargs) - _OF_TRANSFORMERS):
            valid = ", ".join(sorted(self.own_settings()))
            raise ValueError(f"unknown configuration key {', '.join(unknown)}; valid are {valid}")
        self.check()
        token = kwargs.pop("token", None)
        trust = kwargs.pop("trust_remote_code", None)
        if self.text_config is None and self.base_model_name is not None:
            self.text_config = self._read_base_config(token, trust)
        elif isinstance(self.text_config, dict) and self.text_config.get("model_type", "llama") not in CONFIG_MAPPING:
            self.text_config = UnknownBaseConfig(saved=self.text_config)
        use_cache = kwargs.pop("use_cache", None)  # transformers takes it for a setting of generation, and drops it
        super().__post_init__(**kwargs)
        if use_cache is not None:
            self.use_cache = use_cache
        for name, value in tokens.items():  # a trainer aligns these with its tokenizer
            setattr(self, name, value)
        self._refuse_others(derived)
        self.repeat_base()

    def check(self) -> None:
        """Refuse what is not valid.

        Raises:
            ValueError: a value is not valid; the message names those that are.
        """
        one_of("weights_format", self.weights_format, ("adapter", "full"))
        if self.base_model_name is not None:
            self.base_model_name = str(self.base_model_name)
        self.gguf_place()
        self._check_adapters()
        self.memory_config()
        for weight in self.layer_mag_weights or ():
            check_mag_weight(weight, "layer_mag_weights")

    def gguf_place(self) -> GgufPlace | None:
        """Where the base's GGUF file is; None: the base is none."""
        return gguf_place(self.base_model_name, self.base_gguf_file)

    def _read_base_config(self, token: str | bool | None, trust: bool | None) -> PreTrainedConfig:
        return read_base_config(
            str(self.base_model_name),
            self.base_gguf_file,
            revision=self.base_model_revision,
            token=token,
            trust_remote_code=trust,
        )

    def _check_adapters(self) -> None:
        # not at the top: it imports peft, which may be in the middle of importing this module
        from .adapter_settings import check_adapters

        if self.lora_config is not None:
            self.lora_config = _peft_settings(self.lora_config)
            check_adapters(self.lora_config)
        names = list(named_adapters(self.lora_config))
        if unknown := [n for n in self.active_adapters or () if n not in names]:
            raise ValueError(f"active_adapters: unknown {unknown}; lora_config has {names}")

    def _known_base(self) -> PreTrainedConfig | None:
        """The base's configuration; None: there is no base, or its code has not run yet."""
        base = self.text_config
        return base if isinstance(base, PreTrainedConfig) and not isinstance(base, UnknownBaseConfig) else None

    def _base(self) -> PreTrainedConfig | None:
        """The text part of `_known_base`."""
        base = self._known_base()
        return None if base is None else base.get_text_config()

    def _refuse_others(self, derived: dict[str, Any]) -> None:
        """Refuse values of what belongs to the base that are not the base's."""
        base = self._base()
        for name, value in derived.items():
            if base is None and isinstance(self.text_config, UnknownBaseConfig):
                setattr(self, name, value)
            elif base is None or value != getattr(base, name, value):
                there = "no base is given" if base is None else f"there it is {getattr(base, name)!r}"
                raise ValueError(
                    f"{name}={value!r}: a converted model takes this from its base ({there}); leave it out"
                )

    def repeat_base(self) -> None:
        """Say again what is asked of every configuration and belongs to the base."""
        base = self._base()
        for name in (*_DERIVED, *_TOKENS):
            if hasattr(base, name) and not (name in _TOKENS and hasattr(self, name)):
                setattr(self, name, getattr(base, name))

    @property
    def use_cache(self) -> bool:
        """Whether a forward call makes a cache unless it is told: the base's setting."""
        text = self.get_text_config()
        return vars(self).get("_use_cache", True) if text is self else getattr(text, "use_cache", True)

    @use_cache.setter
    def use_cache(self, value: bool) -> None:
        text = self.get_text_config()
        if text is self:
            vars(self)["_use_cache"] = value
        else:
            text.use_cache = value

    @classmethod
    def own_settings(cls) -> set[str]:
        """Names of the arguments that are not those of every transformers configuration."""
        return {f.name for f in fields(MemoryConfig)} | _OWN

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As transformers', with ``kwargs`` that are settings checked as those in ``config_dict`` are.

        Raises:
            ValueError: a key or value is not valid.
        """
        settings = {
            k: kwargs.pop(k) for k in list(kwargs) if k in cls.own_settings() and k not in ("dtype", "text_config")
        }
        if fixed := sorted(k for k in kwargs if k in _DERIVED or callable(getattr(cls, k, None))):
            valid = ", ".join(sorted(cls.own_settings()))
            raise ValueError(
                f"{', '.join(fixed)} cannot be set in a converted model's configuration; valid are {valid}"
            )
        return super().from_dict(config_dict | settings, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig") -> None:
        """Does nothing: checkpoints hold a few lines that import this class, not its source file (`tptt.hf.shim`)."""

    def with_settings(self, changes: dict[str, Any]) -> TpttConfig:
        """A copy with ``changes``, name -> value.

        Raises:
            ValueError: a value is not valid.
        """
        found = copy.deepcopy(self)
        if "base_model_name" in changes and gguf_place(str(changes["base_model_name"])) is not None:
            found.base_gguf_file = None  # the new name is that of the file itself
        for name, value in changes.items():
            setattr(found, name, value)
        found.check()
        return found

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The configuration of the base's text part: of a multimodal base that of its language model."""
        base = self._known_base()
        return self if base is None else base.get_text_config(decoder=decoder, encoder=encoder)

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
        base = type(self._read_base_config(token, trust)).from_dict(saved)
        base.name_or_path = self.base_model_name
        self.text_config = base
        return True

    def memory_config(self) -> MemoryConfig:
        """The memory's part of this configuration, validated."""
        return MemoryConfig(**{f.name: getattr(self, f.name) for f in fields(MemoryConfig)})

    def strays(self) -> list[str]:
        """Names of attributes that somebody has set and that are no settings."""
        known = {f.name for f in fields(self)} | _OF_TRANSFORMERS | {*_DERIVED, *_TOKENS}
        return sorted(name for name in set(vars(self)) - known if not name.startswith("_"))

    def to_dict(self) -> dict[str, Any]:
        """As transformers', without attributes that are no settings, which no configuration could be made from."""
        strays = self.strays()
        out = {k: v for k, v in super().to_dict().items() if k not in strays}
        if isinstance(out.get("text_config"), dict) and self.weights_format == "adapter":
            out["text_config"].pop("quantization_config", None)  # how the base is quantised is said when it is loaded
        return out


_OWN = frozenset(
    [
        "text_config",
        "base_model_name",
        "base_model_revision",
        "base_gguf_file",
        "base_sha256",
        "lora_config",
        "active_adapters",
        "weights_format",
        "layer_mag_weights",
        "dtype",
        "attn_implementation",
    ]
)


def named_adapters(lora_config: dict[str, Any] | None) -> Mapping[str, dict[str, Any]]:
    """Name -> settings of the adapters of ``TpttConfig.lora_config``; one without a name is called "default"."""
    if lora_config is None:
        return {}
    return {"default": lora_config} if "peft_type" in lora_config else lora_config


def _peft_settings(given: Any) -> dict[str, Any]:
    """``TpttConfig.lora_config`` as JSON holds it."""
    settings = given.to_dict() if hasattr(given, "to_dict") else given
    if isinstance(settings, dict) and "peft_type" in settings:
        return jsonable(settings)
    if isinstance(settings, dict) and settings:
        adapters = {str(k): v.to_dict() if hasattr(v, "to_dict") else v for k, v in settings.items()}
        if all(isinstance(v, dict) and "peft_type" in v for v in adapters.values()):
            return jsonable(adapters)
    raise ValueError(
        f"lora_config must be a peft configuration or its to_dict(), got {given!r}; several are given by the names of "
        "their adapters"
    )


def _check_version(found: str) -> None:
    def order(version: str) -> tuple[int, ...]:
        return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in str(version).split(".")[:2])

    if order(found) > order(__version__):
        raise ValueError(
            f"this checkpoint was made by tptt {found}; installed is {__version__}: update tptt to load it"
        )


def read_base_config(
    name: str, gguf_file: str | None = None, what_to_do: str | None = None, **options: Any
) -> PreTrainedConfig:
    """The configuration of the base ``name``, without its weights.

    Args:
        name: folder, hub id or path of a ``.gguf`` file.
        gguf_file: name of a ``.gguf`` file in the folder or hub repository ``name``.
        what_to_do: said where there is no such base.
        options: of ``AutoConfig.from_pretrained``; None is left out.

    Raises:
        ImportError: the base is a GGUF file, and the package ``gguf`` is missing.
        OSError: the base was not found.
        ValueError: it is no causal language model, a converted model, or a GGUF file that cannot be used.
    """
    options = {k: v for k, v in options.items() if v is not None}
    if (place := gguf_place(name, gguf_file)) is not None:
        from .gguf_base import checked_gguf, gguf_config

        path = checked_gguf(place, **options)
    try:
        found = AutoConfig.from_pretrained(name, **options) if place is None else gguf_config(path)
    except (OSError, ValueError) as error:
        raise base_error(str(place or name), error, what_to_do or _IN_CODE) from error
    if found.model_type == TpttConfig.model_type:
        raise ValueError(
            f"base model {name!r} is a converted model already, with a memory: "
            f"TpttModel.from_pretrained({name!r}) loads it"
        )
    return found


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
