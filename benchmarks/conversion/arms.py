"""What is compared: how an arm's memory is configured and trained, as differences from the default recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from benchmarks.held_out import PARTS
from benchmarks.original_operator import make_original
from tptt.convert.window_only import window_alone

from .changes import full_rank, random_maps, short_convolution, window_dropout
from .half_life import half_life_by_distance
from .second_write import second_write
from .sinks import clamped_sinks

FORMATS = ("records", "passkey", "identifiers")
"""Formats that are measured at every length, each held out of training in an arm of its own."""
DEVELOPMENT, TEST = PARTS


@dataclass(frozen=True)
class Arm:
    """One way to convert.

    Args:
        what: a few words for the table.
        config: keys of `TpttConfig`, over its defaults.
        settings: keys of `TrainingSettings`, over its defaults.
        change: what happens to the new model before it is trained.
        without: a format of recall that training leaves out.
        rank: of LoRA; alpha is twice that.
        targets: of LoRA, as `tptt.convert.lora.lora_config` takes them.
        records: trained and measured on dense key-value records of single-token words, as `tptt quickstart` is.
        cached: a cache carries what ``change`` made, so that answers can be generated.
        parts: of the held-out text, that the trained model is measured on (`benchmarks.held_out`).
    """

    what: str
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[nn.Module], object] | None = None
    without: str | None = None
    rank: int = 8
    targets: str = "auto"
    records: bool = False
    cached: bool = True
    parts: tuple[str, ...] = (TEST,)

    @property
    def formats(self) -> tuple[str, ...]:
        """Those of `FORMATS` that it is trained on; records have no other."""
        return ("all",) if self.records else tuple(f for f in FORMATS if f != self.without)


_RAMP = {"mag_weight_start": 0.01, "mag_weight_steps": 100}  # the workflow of TPTT

REFERENCES = {
    "window alone": Arm("LoRA and the window, no memory", change=window_alone, cached=False),
    "original, reimplemented": Arm(
        "our reimplementation of the original operator from its description, not the package; it is no delta rule",
        {"feature_map": "silu", "mix_gate": "none"},
        _RAMP,
        make_original,
    ),
    "parameter-free": Arm(
        "the paper's branch on the exact delta rule: none of its parts is learned",
        {"feature_map": "silu", "write_gate": "k", "mix_gate": "none"},
        _RAMP,
    ),
    "default": Arm("TpttConfig and TrainingSettings as they are", parts=PARTS),
}
RECORDS = {
    "window alone, records": Arm("window alone on key-value records", change=window_alone, records=True, cached=False),
    "default, records": Arm("default on key-value records", records=True),
    "plain Trainer, records": Arm(
        "one learning rate of 5e-3, all tokens weigh the same, no loss of the write gates, equal widths",
        records=True,
        settings={
            "learning_rate": 5e-3,
            "memory_learning_rate": 5e-3,
            "answer_weight": 1.0,
            "filler_weight": 1.0,
            "allocate_widths": False,
            "write_gate_weight": 0.0,
        },
    ),
}
HELD_OUT = {f"without {name}": Arm(f"default, {name} held out of training", without=name) for name in FORMATS}
"""The default, once for each format that it is not trained on."""


def _without(of: str, settings: Mapping[str, Any]) -> dict[str, Arm]:
    """The arm ``of``, trained with ``settings``, once for each format that it is not trained on."""
    return {
        f"{of}, without {name}": Arm(f"the same, {name} held out of training", settings=settings, without=name)
        for name in FORMATS
    }


_FADES = {"write_gate_floor": 0.0}
_STAYS = {"write_gate_steps": None}
_EQUAL = _STAYS | {"fact_weight": 1.0}
_HALF = _EQUAL | {"learning_rate": 2.5e-3, "memory_learning_rate": 1e-2}

_RECIPE = {
    "gate loss fades to 0": Arm("the loss of the write gates falls to 0 during training", settings=_FADES),
    **_without("gate loss fades to 0", _FADES),
    "gate loss stays": Arm("the loss of the write gates keeps its weight to the last step", settings=_STAYS),
    "gate loss stays, without records": Arm(
        "the same, records held out of training", settings=_STAYS, without="records"
    ),
    "gate loss stays, equal": Arm(
        "and facts weigh as much as filler in it; the arms down to narrow change this one", settings=_EQUAL
    ),
    **_without("gate loss stays, equal", _EQUAL),
    "half rates": Arm("2.5e-3 for LoRA, 1e-2 for the memory", settings=_HALF),
    "double rates": Arm(
        "1e-2 for LoRA, 4e-2 for the memory",
        settings=_EQUAL | {"learning_rate": 1e-2, "memory_learning_rate": 4e-2},
    ),
    "LoRA at half": Arm("2.5e-3 for LoRA", settings=_EQUAL | {"learning_rate": 2.5e-3}),
    "memory at half": Arm("1e-2 for the memory", settings=_EQUAL | {"memory_learning_rate": 1e-2}),
    "batch of 1": Arm("twice as many steps, of one row", settings=_EQUAL | {"per_device_train_batch_size": 1}),
    "batch of 1, half rates": Arm("the same at half the rates", settings=_HALF | {"per_device_train_batch_size": 1}),
    "linear mu": Arm("mu from one linear map of the layer's input, half rates", {"mix_gate": "token"}, _HALF),
    "LoRA everywhere": Arm("on the feed-forward layers too, half rates", settings=_HALF, targets="all-linear"),
    "1024 features": Arm("half the state, half rates", {"feature_width": 1024}, _HALF),
    "text only": Arm("the default without recall rows", settings={"recall_share": 0.0}),
    "text only, long-context weight 1": Arm(
        "and text tokens weigh more where the base's whole context predicts them better than the window",
        settings={"recall_share": 0.0, "long_context_weight": 1.0},
    ),
    "text only, long-context weight 3": Arm(
        "three times as much", settings={"recall_share": 0.0, "long_context_weight": 3.0}
    ),
    "long-context weight 1": Arm("the default, and text so weighted", settings={"long_context_weight": 1.0}),
    **_without("long-context weight 1", {"long_context_weight": 1.0}),
}


def _narrow(
    what: str, config: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None, **more: Any
) -> Arm:
    """The arm "narrow" with changes: half the features take half the time; the mixing gate, the loss of the write
    gates and the learning rates are those that were the default when most of these arms were trained."""
    memory = {"feature_width": 1024, "mix_gate": "token"} | dict(config or {})
    return Arm(what, memory, _HALF | dict(settings or {}), **more)


_GATED = {"operator": "gated_delta_rule"}
_NARROW = {
    "narrow": _narrow("half rates, linear mu and 1024 features; the arms below change this one"),
    "random maps": _narrow("features that do not begin at the base's scores", change=random_maps),
    "equal widths": _narrow("as many features in every layer", settings={"allocate_widths": False}),
    "no gate loss": _narrow("write gates learn from predictions alone", settings={"write_gate_weight": 0.0}),
    "equal widths, no gate loss": _narrow("both", settings={"allocate_widths": False, "write_gate_weight": 0.0}),
    "512 features": _narrow("half of its state", {"feature_width": 512}),
    "sign-split": _narrow(
        "features SiLU([Px, -Px]), which begin at the base's scores too", {"feature_map": "sign_split"}
    ),
    "batch of 4": _narrow("half as many steps, of twice as many rows", settings={"per_device_train_batch_size": 4}),
    "recall share .375": _narrow("fewer recall rows", settings={"recall_share": 0.375}),
    "narrow, text only": _narrow("no recall rows", settings={"recall_share": 0.0}),
    "equal token weights": _narrow(
        "all tokens of recall rows weigh as text does", settings={"answer_weight": 1.0, "filler_weight": 1.0}
    ),
    "one rate": _narrow("5e-3 for LoRA and memory", settings={"memory_learning_rate": 5e-3, "learning_rate": 5e-3}),
    "slower": _narrow(
        "1.25e-3 for LoRA, 5e-3 for the memory", settings={"learning_rate": 1.25e-3, "memory_learning_rate": 5e-3}
    ),
    "faster": _narrow(
        "5e-3 for LoRA, 2e-2 for the memory", settings={"learning_rate": 5e-3, "memory_learning_rate": 2e-2}
    ),
    "mu ramp": _narrow("mag_weight rises from 0.01 over 100 steps", settings=_RAMP),
    "mu per head": _narrow("mu does not depend on the token", {"mix_gate": "head"}),
    "beta from keys": _narrow("write gate without parameters", {"write_gate": "k"}),
    "gated delta rule": _narrow("a decay per token and head", _GATED),
    "gated, half-life by distance": _narrow(
        "its half-life begins at the mean distance that the base's heads look back",
        _GATED,
        change=half_life_by_distance,
    ),
    "KDA": _narrow("a decay per channel", {"operator": "kda"}),
    "DeltaProduct": _narrow("virtual tokens", {"operator": "delta_product"}),
    "DeltaProduct, learned": _narrow(
        "a second write with a key, a value and a gate of its own", change=second_write, cached=False
    ),
    "state per query head": _narrow("twice the states", {"states": "query_head"}),
    "mu from .1": _narrow("the branches begin at .9 and .1", {"mag_weight": 0.1}),
    "short convolution": _narrow(
        "the memory's queries and keys pass a convolution of four tokens", change=short_convolution, cached=False
    ),
    "LoRA rank 32": _narrow("four times the rank", rank=32),
    "full rank": _narrow(
        "q, k, v and o are trained themselves as well, at 1e-3", settings={"learning_rate": 1e-3}, change=full_rank
    ),
    "sinks": _narrow("the first four tokens stay in the window", {"sink_tokens": 4}),
    "clamped sinks": _narrow(
        "and never seem further away than the window is wide", {"sink_tokens": 4}, change=clamped_sinks, cached=False
    ),
    "window dropout": _narrow("the window is narrower in two of three training steps", change=window_dropout),
    "TBPTT, 2 chunks": _narrow(
        "rows of two chunks, each a row long; gradients end between them",
        settings={"tbptt_chunks": 2, "per_device_train_batch_size": 1},
    ),
    "attention transfer": _narrow(
        "distance to the base's attention outputs, weight 1", settings={"attention_transfer_weight": 1.0}
    ),
    "KL": _narrow("KL to the base, weight .5", settings={"kl_weight": 0.5}),
}
INGREDIENTS = {name: replace(arm, parts=(DEVELOPMENT,)) for name, arm in (_RECIPE | _NARROW).items()}
"""The default with one ingredient changed, and "narrow" with one: compared on the development part alone."""

ARMS = REFERENCES | RECORDS | HELD_OUT | INGREDIENTS
