"""MemoryConfig: what the linear memory of a model is. Plain Python: it knows neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tptt.fields import described, documented

OPERATORS = (
    "delta_rule",
    "gated_delta_rule",
    "kda",
    "linear_attention",
    "gated_linear_attention",
    "delta_rule_v",
    "delta_rule_kv",
    "delta_rule_gelu",
    "delta_product",
    "gated_delta_product",
    "delta_product_r",
    "delta_product_c",
)
FEATURE_MAPS = ("fourier", "sign_split", "silu")
WRITE_GATES = ("learned", "constant", "k", "v", "kv")
STATES = ("kv_head", "query_head")
MIX_GATES = ("mlp", "token", "head", "none")


def one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
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


@documented
@dataclass(frozen=True)
class MemoryConfig:
    """The linear memory of one attention layer and how it is mixed in.

    The defaults are what `benchmarks.conversion` found best.

    Raises:
        ValueError: a value is not among the valid ones, which the message names.
    """

    operator: str = described(
        "delta_rule",
        "Recurrence: delta_rule (arXiv 2406.06484), gated_delta_rule with a learned decay per head (2412.06464), kda "
        "with one per channel (2510.26692), linear_attention (2006.16236), gated_linear_attention with a learned "
        "decay per channel (2312.06635). From TPTT (2506.17671), measured in no table: delta_rule_v and "
        "delta_rule_kv, whose write gate is v or kv; delta_rule_gelu, which replaces the state S by sign(S) "
        "GELU(|S|) every state_activation_every tokens; delta_product, gated_delta_product, delta_product_r and "
        "delta_product_c, which write twice per token (2502.10297): the token, and a second key and value made by "
        "the difference from the token before (gated: with a decay per head), by a rotation, or by the mean of both.",
    )
    feature_map: str = described(
        "fourier",
        "Feature map of queries and keys: fourier, cosines and sines of Px / ||Px|| with a learned P, whose inner "
        "product is a Gaussian kernel of Px / ||Px||; sign_split, SiLU([Px, -Px]) / ||.|| with a learned P, a "
        "smaller state that recalled nothing in benchmarks/RESULTS.md; silu, SiLU(x) / ||.|| without parameters.",
    )
    feature_width: int | tuple[int, ...] = described(
        2048,
        "Width K of the fourier features, even: how many keys a state keeps apart. A state is K x V numbers in "
        "float32. One number for all layers with a memory, or a list with one for each of them.",
    )
    write_gate: str = described(
        "learned",
        "Write gate beta: learned, the sigmoid of a linear map of the layer's input; constant, 1/2; or without "
        "parameters the sigmoid of the keys (k), the values (v) or their product (kv), averaged over three tokens "
        "and the head's channels.",
    )
    state_activation_every: int = described(256, "Tokens between two activations of the state, for delta_rule_gelu.")
    states: str = described(
        "kv_head",
        "kv_head: one state per key/value head, which every query head of its group reads. query_head: one state per "
        "query head, under grouped-query attention a larger cache that remembers no better at equal size.",
    )
    mix_gate: str = described(
        "mlp",
        "What moves mu beside mag_weight: mlp, two linear maps of the layer's input with SiLU between them; token, "
        "one linear map of it; head, a learned constant per head; none.",
    )
    cross_gate: bool = described(
        False,
        "Add the product of softmax and memory to (1 - mu) softmax + mu memory, behind the output projection, which "
        "is then computed twice. From TPTT, measured in no table.",
    )
    mag_weight: float = described(
        0.5, "mu in [0, 1] where the mix gate gives 0: 0 is the base model, 1 the memory alone."
    )
    max_self_attn_length: int | str | None = described(
        None,
        "Window W of the softmax branch in tokens, the token itself included; null is no window. auto: a training run "
        "takes a quarter of its rows, at most 512 tokens.",
    )
    sink_tokens: int = described(
        0,
        "First tokens of a sequence that stay visible beyond the window, at the distances that the base's positions "
        "give them. In texts longer than a training row they cost recall and perplexity (benchmarks/RESULTS.md, "
        "sinks).",
    )
    layers: str | int | tuple[int, ...] = described(
        "all",
        "Attention layers that get a memory: all, an integer n for every n-th (n - 1, 2 n - 1, ...), or a list of "
        "layer numbers. The others keep the base's attention with its whole context. auto measures on the training "
        "text which layers need their whole context most; it needs kv_budget.",
    )
    memory_only_layers: str | tuple[int, ...] = described(
        (),
        "Layers whose mu is fixed at 1, all or a list of layer numbers: they compute no softmax and hold no keys and "
        "values. The same holds while mag_weight is 1 and mix_gate is none. With layers: auto, those that have no "
        "softmax unless they are chosen to keep their whole context.",
    )
    bidirectional: bool = described(False, "For encoders: the mean of reading from the left and from the right.")
    attention_layout: str | dict[str, Any] | None = described(
        None,
        "How the attention modules keep their projections: a name in tptt.hf.LAYOUTS, or a mapping with projections, "
        "output and split. Null finds out.",
    )

    def __post_init__(self) -> None:
        one_of("operator", self.operator, OPERATORS)
        one_of("feature_map", self.feature_map, FEATURE_MAPS)
        one_of("write_gate", self.write_gate, WRITE_GATES)
        one_of("states", self.states, STATES)
        one_of("mix_gate", self.mix_gate, MIX_GATES)
        check_mag_weight(self.mag_weight)
        _check_window(self.max_self_attn_length)
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

    @property
    def window(self) -> int | None:
        """``max_self_attn_length``, once it is decided.

        Raises:
            ValueError: it is "auto".
        """
        if isinstance(self.max_self_attn_length, str):
            raise ValueError(
                "max_self_attn_length='auto' is decided by the length of training rows: "
                "tptt.train.convert_and_train(config, data) chooses it; elsewhere give a number of tokens, or None"
            )
        return self.max_self_attn_length


def _check_window(value: object) -> None:
    if value is None or value == "auto":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"max_self_attn_length must be an integer of 1 or more, 'auto' or None, got {value!r}")


def require_decided(config: MemoryConfig) -> None:
    """Refuse a configuration that leaves its layers or its window to data.

    Raises:
        ValueError: ``layers`` or ``max_self_attn_length`` is "auto".
    """
    _ = config.window
    if config.layers == "auto":
        raise ValueError(
            "layers='auto' is decided by data: tptt.train.convert_and_train(config, data, "
            "TrainingSettings(kv_budget=...)) chooses the layers, or tptt.convert.choose_layers on a model with a "
            "memory in all of them; without data give layers='all', an integer n for every n-th, or a list of layer "
            "numbers"
        )
