"""What the memory is (MemoryConfig) and what a converted model is (TpttConfig)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

__version__ = "1.0.0.dev0"

OPERATORS = (
    "delta_rule", "gated_delta_rule", "kda", "linear_attention", "gated_linear_attention", "delta_rule_v",
    "delta_rule_kv", "delta_rule_gelu", "delta_product", "gated_delta_product", "delta_product_r", "delta_product_c",
)  # fmt: skip
FEATURE_MAPS = ("fourier", "sign_split", "silu")
WRITE_GATES = ("learned", "constant", "k", "v", "kv")
STATES = ("kv_head", "query_head")
MIX_GATES = ("mlp", "token", "head", "none")


def _one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}; valid are {', '.join(valid)}")


def check_mag_weight(value: object, name: str = "mag_weight") -> float:
    """The Memory-as-Gate weight ``value`` as a float; an error calls it ``name``.

    Raises:
        ValueError: it is no number in [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")


def _numbers(name: str, value: Any) -> str | tuple[int, ...]:
    """ "all" or layer numbers as a tuple, however they came (JSON has lists only)."""
    if value == "all" or (value == "auto" and name == "layers"):
        return value
    if isinstance(value, list | tuple) and all(isinstance(x, int) and not isinstance(x, bool) for x in value):
        return tuple(value)
    every = ", 'auto', an integer n for every n-th," if name == "layers" else ""
    raise ValueError(f"{name} must be 'all'{every} or a list of layer numbers, got {value!r}")


def _widths(value: Any) -> int | tuple[int, ...]:
    """One width for all layers, or one for each as a tuple."""
    several = isinstance(value, list | tuple)
    if several and not value:
        raise ValueError(
            "feature_width must be an integer or a list of them, one for each layer with a memory, got none"
        )
    for width in value if several else (value,):
        _check_count("feature_width", width, 2)
        if width % 2:
            raise ValueError(f"feature_width counts cosines and sines and must be even, got {width}")
    return tuple(value) if several else value


@dataclass(frozen=True)
class MemoryConfig:
    """The linear memory of one attention layer and how it is mixed in. The defaults are what `benchmarks.conversion` found best.

    Args:
        operator: recurrence: ``delta_rule`` (arXiv 2406.06484), with a learned decay per head ``gated_delta_rule``
            (2412.06464) or per channel ``kda`` (2510.26692); ``linear_attention`` (2006.16236), with a learned decay per
            channel ``gated_linear_attention`` (2312.06635). Of TPTT (2506.17671): ``delta_rule_v`` and ``delta_rule_kv``, the
            delta rule with write gate ``v`` or ``kv``; ``delta_rule_gelu``, the delta rule with sign(S) GELU(|S|) of the state
            S at every ``state_activation_every``-th token of a sequence; ``delta_product``, ``gated_delta_product``, ``delta_product_r`` and
            ``delta_product_c``, two writes per token (2502.10297): itself and a virtual one made by its difference from
            the token before (gated: with a decay per head), by a rotation, or by the mean of both.
        feature_map: of queries and keys: ``fourier``, cosines and sines of Px / ||Px|| with P [R, D] learned, whose product is
            a Gaussian kernel of it; ``sign_split`` SiLU([Px, -Px]) / ||.|| with P [D, D] learned, 2 D, for a smaller
            state that follows a softmax head less closely (`benchmarks/features.py`); ``silu`` SiLU(x) / ||.|| without parameters.
        feature_width: of ``fourier``, K, even: how many keys are kept apart. A state is K x V numbers in float32. One number
            for all layers with a memory, or one for each of them in their order (`tptt.training.spread_width`).
        write_gate: beta: ``learned`` sigmoid of a linear map of the layer's input, ``constant`` 1/2, or without parameters
            the sigmoid of the keys (``k``), values (``v``) or their product (``kv``), averaged over three tokens and the
            head's channels.
        state_activation_every: tokens between two activations of the state, for ``delta_rule_gelu``.
        states: one state per ``kv_head``, written once and read by every query head of its group, or per ``query_head``:
            under grouped-query attention a larger cache that remembers no better at equal size.
        mix_gate: what moves mu beside ``mag_weight``: ``mlp`` two linear maps of the layer's input with SiLU between, ``token``
            one linear map of it, ``head`` a learned constant per head, ``none``.
        cross_gate: beside (1 - mu) softmax + mu memory also the product of the two, taken behind the output projection, which
            is then computed twice (TPTT).
        mag_weight: mu in [0, 1] where the gate is 0: 0 is the base model, 1 the memory alone.
        max_self_attn_length: window W of the softmax branch in tokens, the token itself included; None is all.
        sink_tokens: first tokens of a sequence that stay visible beyond the window, at the distances that the base's
            positions give them. For texts no longer than a training row: beyond it they cost recall and perplexity
            (``benchmarks.conversion``, "sinks").
        layers: which attention layers get a memory: "all", an integer n for every n-th (n - 1, 2 n - 1, ...), or their
            numbers. The others keep the base's attention: its whole context, no memory. "auto" leaves it to
            `tptt.training.convert_and_train`, which measures on data which layers need their whole context most.
        memory_only_layers: those of ``layers`` whose mu is fixed at 1, "all" or their numbers: they compute no softmax and
            hold no keys and values. The same holds while ``mag_weight`` is 1 and there is no ``mix_gate``. With
            ``layers="auto"``: those that have no softmax unless they are chosen to keep their whole context.
        bidirectional: for encoders: the mean of a reading from the left and one from the right.
        attention_layout: how the attention modules keep their projections; None finds out. A name of
            `tptt.surgery.LAYOUTS`, or a dictionary with ``projections``, ``output`` and ``split`` (`tptt.surgery.Layout`).

    Raises:
        ValueError: a value is not among the valid ones, which the message names.
    """

    operator: str = "delta_rule"
    feature_map: str = "fourier"
    feature_width: int | tuple[int, ...] = 2048
    write_gate: str = "learned"
    state_activation_every: int = 256
    states: str = "kv_head"
    mix_gate: str = "mlp"
    cross_gate: bool = False
    mag_weight: float = 0.5
    max_self_attn_length: int | None = None
    sink_tokens: int = 0
    layers: str | int | tuple[int, ...] = "all"
    memory_only_layers: str | tuple[int, ...] = ()
    bidirectional: bool = False
    attention_layout: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _one_of("operator", self.operator, OPERATORS)
        _one_of("feature_map", self.feature_map, FEATURE_MAPS)
        _one_of("write_gate", self.write_gate, WRITE_GATES)
        _one_of("states", self.states, STATES)
        _one_of("mix_gate", self.mix_gate, MIX_GATES)
        check_mag_weight(self.mag_weight)
        if self.max_self_attn_length is not None:
            _check_count("max_self_attn_length", self.max_self_attn_length, 1)
        object.__setattr__(self, "feature_width", _widths(self.feature_width))
        _check_count("state_activation_every", self.state_activation_every, 1)
        _check_count("sink_tokens", self.sink_tokens, 0)
        if self.sink_tokens and self.max_self_attn_length is None:
            raise ValueError("sink_tokens has no meaning without a window: set max_self_attn_length as well")
        if self.bidirectional and self.max_self_attn_length is not None:
            raise ValueError("max_self_attn_length bounds causal attention: it has no meaning with bidirectional=True")
        if isinstance(self.layers, int):
            _check_count("layers", self.layers, 1)
        else:
            object.__setattr__(self, "layers", _numbers("layers", self.layers))
        object.__setattr__(self, "memory_only_layers", _numbers("memory_only_layers", self.memory_only_layers))


def require_chosen_layers(config: MemoryConfig) -> None:
    """Refuse a configuration whose layers are still to be chosen.

    Raises:
        ValueError: ``layers`` is "auto".
    """
    if config.layers == "auto":
        raise ValueError(
            "layers='auto' is decided by data: tptt.training.convert_and_train(config, data, "
            "TrainingSettings(kv_budget=...)) chooses the layers, or tptt.training.choose_layers on a model with a memory "
            "in all of them; without data give layers='all', an integer n for every n-th, or a list of layer numbers"
        )


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
    max_self_attn_length: int | None = None
    sink_tokens: int = 0
    layers: str | int | list | tuple = "all"
    memory_only_layers: str | list | tuple = ()
    bidirectional: bool = False
    attention_layout: str | dict | None = None

    def __post_init__(self, **kwargs):
        _check_version(self.tptt_version)
        unknown = sorted(k for k in kwargs if k not in _HF_KEYS and not hasattr(PreTrainedConfig, k))
        if unknown:
            valid = sorted({f.name for f in fields(MemoryConfig)} | _OWN)
            raise ValueError(f"unknown configuration key {', '.join(unknown)}; valid are {', '.join(valid)}")
        _one_of("weights_format", self.weights_format, ("adapter", "full"))
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
