"""MemoryConfig: what the linear memory of a model is. Plain Python: it knows neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OPERATORS = (
    "delta_rule", "gated_delta_rule", "kda", "linear_attention", "gated_linear_attention", "delta_rule_v",
    "delta_rule_kv", "delta_rule_gelu", "delta_product", "gated_delta_product", "delta_product_r", "delta_product_c",
)  # fmt: skip
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
            for all layers with a memory, or one for each of them in their order (`tptt.convert.allocate_widths`).
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
            `tptt.train.convert_and_train`, which measures on data which layers need their whole context most.
        memory_only_layers: those of ``layers`` whose mu is fixed at 1, "all" or their numbers: they compute no softmax and
            hold no keys and values. The same holds while ``mag_weight`` is 1 and there is no ``mix_gate``. With
            ``layers="auto"``: those that have no softmax unless they are chosen to keep their whole context.
        bidirectional: for encoders: the mean of a reading from the left and one from the right.
        attention_layout: how the attention modules keep their projections; None finds out. A name of
            `tptt.hf.LAYOUTS`, or a dictionary with ``projections``, ``output`` and ``split`` (`tptt.hf.Layout`).

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
        one_of("operator", self.operator, OPERATORS)
        one_of("feature_map", self.feature_map, FEATURE_MAPS)
        one_of("write_gate", self.write_gate, WRITE_GATES)
        one_of("states", self.states, STATES)
        one_of("mix_gate", self.mix_gate, MIX_GATES)
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
            "layers='auto' is decided by data: tptt.train.convert_and_train(config, data, "
            "TrainingSettings(kv_budget=...)) chooses the layers, or tptt.convert.choose_layers on a model with a memory "
            "in all of them; without data give layers='all', an integer n for every n-th, or a list of layer numbers"
        )
