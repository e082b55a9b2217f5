"""What is compared: how an arm's memory is configured and trained, as differences from the default recipe."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.original_operator import make_original
from tptt.convert.window_only import window_alone
from tptt.hf import memories
from tptt.hf.slots import patched_attention, slot_of
from tptt.memory.features import MAPS, LearnedMap

from .half_life import half_life_by_distance
from .second_write import second_write
from .sinks import clamped_sinks

FORMATS = ("records", "passkey", "identifiers")
"""Formats that are measured at every length, each held out of training in an arm of its own."""


@dataclass(frozen=True)
class Arm:
    """One way to convert.

    Args:
        what: a few words for the table.
        config: of `TpttConfig`, over its defaults.
        settings: of `TrainingSettings`, over its defaults.
        change: what happens to the new model before it is trained.
        without: a format of recall that training leaves out.
        rank: of LoRA; alpha is twice that.
        targets: of LoRA, as `tptt.convert.lora.lora_config` takes them.
        records: trained and measured on dense key-value records of single-token words, as `tptt quickstart` is.
        cached: a cache carries what ``change`` made, so that answers can be generated.
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

    @property
    def formats(self) -> tuple[str, ...]:
        """Of `FORMATS`, those that it is trained on; records have no other."""
        return ("all",) if self.records else tuple(f for f in FORMATS if f != self.without)


@torch.no_grad()
def random_maps(model: nn.Module) -> None:
    """Feature maps that know nothing of the base, as they are before `tptt.calibrate`."""
    for memory in memories(model):
        for features in (memory.query_features, memory.key_features):
            if isinstance(features, LearnedMap):
                config, (heads, _, head_dim) = memory.config, features.weight.shape
                new = MAPS[config.feature_map](heads, head_dim, config.feature_width)
                features.weight.copy_(new.weight)


class Convolved(nn.Module):
    """Features of each channel's last four values, weighted by a learned kernel that begins as the last one alone."""

    def __init__(self, features: nn.Module, heads: int, head_dim: int) -> None:
        super().__init__()
        self.features, self.width = features, features.width
        self.kernel = nn.Parameter(torch.eye(4)[0, :, None, None].repeat(1, heads, head_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, T, H, D]
        past = F.pad(x.float(), (0, 0, 0, 0, 3, 0))
        return self.features(sum(w * past[:, 3 - i : past.shape[1] - i] for i, w in enumerate(self.kernel)))


def short_convolution(model: nn.Module) -> None:
    """Queries and keys of the memory are convolved over time; for whole sequences only, no cache carries it."""
    for memory in memories(model):
        for name in ("query_features", "key_features"):
            features = getattr(memory, name)
            setattr(memory, name, Convolved(features, len(features.weight), features.weight.shape[-1]))
        memory.one_call = False


def full_rank(model: nn.Module) -> None:
    """The matrices that LoRA adds to train themselves."""
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.base_layer.weight.requires_grad_(True)


def window_dropout(model: nn.Module) -> None:
    """In training every call draws how wide the window is: all, a half or a quarter."""
    slots = [slot_of(m) for m in patched_attention(model)]
    widths, rng = [s.window for s in slots], random.Random(0)

    def draw(module: nn.Module, args: tuple) -> None:
        share = rng.choice((1, 2, 4)) if module.training else 1
        for slot, width in zip(slots, widths, strict=True):
            slot.window = width // share

    model.register_forward_pre_hook(draw)


_AS_BEFORE = {"allocate_widths": False, "write_gate_weight": 0.0}
_RAMP = {"mag_weight_start": 0.01, "mag_weight_steps": 100}  # the workflow of TPTT

REFERENCES = {
    "window alone": Arm("LoRA and the window, no memory", change=window_alone, cached=False),
    "original": Arm(
        "the operator of the public package, reimplemented from a reading; it computes no delta rule",
        {"feature_map": "silu", "mix_gate": "none"}, _RAMP, make_original,
    ),
    "parameter-free": Arm(
        "the paper's branch on the exact delta rule: nothing of it is learned",
        {"feature_map": "silu", "write_gate": "k", "mix_gate": "none"}, _RAMP,
    ),
    "default": Arm("TpttConfig and TrainingSettings as they are"),
}  # fmt: skip
RECORDS = {
    "window alone, records": Arm("window alone on key-value records", change=window_alone, records=True, cached=False),
    "default, records": Arm("default on key-value records", records=True),
    "plain, records": Arm(
        "what the plain Trainer does: one rate of 5e-3, no weights",
        records=True,
        settings={"learning_rate": 5e-3, "memory_learning_rate": 5e-3, "answer_weight": 1.0, "filler_weight": 1.0}
        | _AS_BEFORE,
    ),
}
_FADED = {"write_gate_floor": 0.0}
_FAR = {"long_context_weight": 1.0}
_TOLD = {"write_gate_steps": None}
_EQUAL = _TOLD | {"fact_weight": 1.0}
_HALF = _EQUAL | {"learning_rate": 2.5e-3, "memory_learning_rate": 1e-2}
_NARROW = {"feature_width": 1024, "mix_gate": "token"}
HELD_OUT = {f"no {name}": Arm(f"default, {name} held out of training", without=name) for name in FORMATS}


def _held_out(of: str, settings: Mapping[str, Any]) -> dict[str, Arm]:
    """The arm ``of``, trained with ``settings``, once for each format that it is not trained on."""
    return {
        f"{of}, no {name}": Arm(f"the same, {name} held out of training", settings=settings, without=name)
        for name in FORMATS
    }


def _narrow(
    what: str, config: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None, **more: Any
) -> Arm:
    """An ingredient is tried with half the features, which takes half the time, and with the mixing gate, the write gates'
    loss and the rates that were the default when most of them were."""
    return Arm(what, _NARROW | dict(config or {}), _HALF | dict(settings or {}), **more)


INGREDIENTS = {
    "told no more": Arm("write gates are told less and less, and in the end nothing", settings=_FADED),
    **_held_out("told no more", _FADED),
    "told to the end": Arm("write gates are told what to write up to the last step", settings=_TOLD),
    "told to the end, no records": Arm("the same, records held out of training", settings=_TOLD, without="records"),
    "told evenly": Arm("and facts weigh as much as the rest in that; all below begin from it", settings=_EQUAL),
    **_held_out("told evenly", _EQUAL),
    "half the rates": Arm("2.5e-3 for LoRA, 1e-2 for the memory", settings=_HALF),
    "twice the rates": Arm(
        "1e-2 for LoRA, 4e-2 for the memory", settings=_EQUAL | {"learning_rate": 1e-2, "memory_learning_rate": 4e-2}
    ),
    "LoRA at half": Arm("2.5e-3 for LoRA", settings=_EQUAL | {"learning_rate": 2.5e-3}),
    "memory at half": Arm("1e-2 for the memory", settings=_EQUAL | {"memory_learning_rate": 1e-2}),
    "one row": Arm("twice as many steps, of one row", settings=_EQUAL | {"per_device_train_batch_size": 1}),
    "one row, half": Arm("the same at half the rates", settings=_HALF | {"per_device_train_batch_size": 1}),
    "linear mu": Arm("mu from one linear map of the layer's input, half the rates", {"mix_gate": "token"}, _HALF),
    "LoRA everywhere": Arm("on the feed-forward layers too, half the rates", settings=_HALF, targets="all-linear"),
    "1024 features": Arm("half the state, half the rates", {"feature_width": 1024}, _HALF),
    "narrow": _narrow("all three; all below begin from it"),
    "random maps": _narrow("features that do not begin at the base's scores", change=random_maps),
    "equal widths": _narrow("as many features in every layer", settings={"allocate_widths": False}),
    "gates on their own": _narrow("write gates learn from predictions alone", settings={"write_gate_weight": 0.0}),
    "neither": _narrow("equal widths, gates on their own", settings=_AS_BEFORE),
    "512 features": _narrow("half of its state", {"feature_width": 512}),
    "sign-split": _narrow("features SiLU([Px, -Px]), which begin there too", {"feature_map": "sign_split"}),
    "4 rows": _narrow("half as many steps, of twice as many rows", settings={"per_device_train_batch_size": 4}),
    "mix .375": _narrow("fewer recall rows", settings={"recall_share": 0.375}),
    "text by default": Arm("no recall rows", settings={"recall_share": 0.0}),
    "text, far weighted": Arm(
        "and tokens weigh by what the base's whole context tells of them", settings={"recall_share": 0.0} | _FAR
    ),
    "text, far weighted more": Arm("three times as much", settings={"recall_share": 0.0, "long_context_weight": 3.0}),
    "far weighted": Arm("recall rows and far weighted text", settings=_FAR),
    **_held_out("far weighted", _FAR),
    "text alone": _narrow("no recall rows", settings={"recall_share": 0.0}),
    "equal weights": _narrow("recall rows weigh as text does", settings={"answer_weight": 1.0, "filler_weight": 1.0}),
    "one rate": _narrow("5e-3 for LoRA and memory", settings={"memory_learning_rate": 5e-3, "learning_rate": 5e-3}),
    "slower": _narrow(
        "1.25e-3 for LoRA, 5e-3 for the memory", settings={"learning_rate": 1.25e-3, "memory_learning_rate": 5e-3}
    ),
    "faster": _narrow(
        "5e-3 for LoRA, 2e-2 for the memory", settings={"learning_rate": 5e-3, "memory_learning_rate": 2e-2}
    ),
    "mu ramp": _narrow("mag_weight rises from 0.01 over 100 steps", settings=_RAMP),
    "mu per head": _narrow("mu does not depend on the token", {"mix_gate": "head"}),
    "beta of keys": _narrow("write gate without parameters", {"write_gate": "k"}),
    "decay": _narrow("gated delta rule", {"operator": "gated_delta_rule"}),
    "decay by distance": _narrow(
        "its half-life begins at the mean distance that the base's heads look back",
        {"operator": "gated_delta_rule"},
        change=half_life_by_distance,
    ),
    "KDA": _narrow("a decay per channel", {"operator": "kda"}),
    "DeltaProduct": _narrow("virtual tokens", {"operator": "delta_product"}),
    "DeltaProduct, learned": _narrow(
        "a second write with a key, a value and a gate of its own", change=second_write, cached=False
    ),
    "state per query head": _narrow("twice the states", {"states": "query_head"}),
    "mu from .1": _narrow("both branches begin at .9 and .1", {"mag_weight": 0.1}),
    "short convolution": _narrow(
        "of the memory's queries and keys, four tokens wide", change=short_convolution, cached=False
    ),
    "LoRA rank 32": _narrow("four times the rank", rank=32),
    "full rank": _narrow(
        "q, k, v and o train themselves as well, at 1e-3", settings={"learning_rate": 1e-3}, change=full_rank
    ),
    "sinks": _narrow("the first four tokens stay in the window", {"sink_tokens": 4}),
    "clamped sinks": _narrow(
        "and are never further away than it is wide", {"sink_tokens": 4}, change=clamped_sinks, cached=False
    ),
    "window dropout": _narrow("the window is narrower in two of three training steps", change=window_dropout),
    "carried": _narrow(
        "rows of two pieces, each a row long, gradients end between them",
        settings={"tbptt_chunks": 2, "per_device_train_batch_size": 1},
    ),
    "align": _narrow("distance to the base's attention outputs, weight 1", settings={"attention_transfer_weight": 1.0}),
    "KL": _narrow("KL to the base, weight .5", settings={"kl_weight": 0.5}),
}
"""Each ingredient of the default taken away, or another one put in, one at a time, beside "narrow"."""

ARMS = REFERENCES | RECORDS | HELD_OUT | INGREDIENTS
