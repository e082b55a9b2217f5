"""How a conversion is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tptt.convert.choose_layers import check_kv_budget
from tptt.data import chosen_formats


@dataclass(frozen=True)
class TrainingSettings:
    """How a converted model is trained; the defaults are the best recipe that `benchmarks.conversion` found.

    Args:
        tokens: in all, in optimizer steps of ``per_device_train_batch_size * gradient_accumulation_steps`` rows (on each device) of ``seq_len`` tokens.
        seq_len: tokens of a row; None is the base's context, 512 at most.
        per_device_train_batch_size: rows of a batch on each device.
        gradient_accumulation_steps: batches of an optimizer step.
        learning_rate: peak learning rate of LoRA and whatever else of the base trains; None is the one for the base's width
            (`tptt.train.default_rates`).
        memory_learning_rate: peak learning rate of the memory; None likewise.
        warmup_steps: optimizer steps until the peak; from there the rates fall along a cosine to 0.
        recall_share: part of the rows that state facts and ask for them again, in [0, 1].
        recall_formats: "all" or names of `tptt.data.FORMATS`.
        facts: facts of a recall row, one of these drawn for each.
        answer_weight, filler_weight: weight in the loss of asked answers and of all else in a recall row; text has 1.
        write_gate_weight: weight in the loss of the write gates' own one: what a recall row states is to be written, the rest not.
        fact_weight: in that, weight of what is stated over that of the rest. A gate that was not taught a form of text is
            in doubt there, and a fact that is not written is lost, while a filler word that is costs little.
        write_gate_steps: optimizer steps after which ``write_gate_weight`` falls, by all of it in as many again; None: it stays. Gates that
            are told for long know the forms they are taught in, and take others for filler.
        write_gate_floor: part of ``write_gate_weight`` below which it does not fall, in [0, 1]. Gates that are told nothing forget what to
            leave out, which long rows bring to light.
        allocate_widths: give layers memories as wide as what the base needs from beyond their window (`allocate_widths`); the mean
            stays ``feature_width``.
        kl_weight: weight of the KL divergence of the base's predictions, with its whole context, from the model's.
        attention_transfer_weight: weight of the distance between what the layers give out and what the base's own give out, beyond the window.
        long_context_weight: what a nat adds to the weight of a token of text by which the base predicts it better from its whole context
            than from the window.
        tbptt_chunks: pieces of ``seq_len`` tokens that a row has; state and window go on from piece to piece, gradients do not.
        mag_weight_start: mu of the first step where it is to rise from there to the configuration's ``mag_weight``; None leaves it.
        mag_weight_steps: steps of that rise.
        probe_steps: steps between two looks at the memory's share of the work (0: none).
        stop_at_recall: training ends when a look finds recall beyond the window of at least this; None: never.
        kv_budget: for ``layers="auto"``: share of the base's bytes of keys and values that the converted model may hold, in
            [0, 1); as many layers keep their whole context as fit (`tptt.convert.choose_layers`). States come on top.
        kv_length: tokens of a sequence at which that is counted; None is ``seq_len``. A window of W is W / kv_length of a
            layer, so that at the length you will serve more layers fit than at that of the rows.
        bf16: autocast to bfloat16; None where the device is a GPU that has it.
        gradient_checkpointing: recompute activations in the backward pass.
        seed: of all that is drawn.

    Raises:
        ValueError: a value is out of its range; the message names it and what is valid.
    """

    tokens: int = 524_288
    seq_len: int | None = None
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = None
    memory_learning_rate: float | None = None
    warmup_steps: int = 10
    recall_share: float = 0.5
    recall_formats: str | Sequence[str] = "all"
    facts: Sequence[int] = (2, 4, 8, 16)
    answer_weight: float = 5.0
    filler_weight: float = 0.1
    write_gate_weight: float = 0.5
    fact_weight: float = 3.0
    write_gate_steps: int | None = 512
    write_gate_floor: float = 0.25
    allocate_widths: bool = True
    kl_weight: float = 0.0
    attention_transfer_weight: float = 0.0
    long_context_weight: float = 0.0
    tbptt_chunks: int = 1
    mag_weight_start: float | None = None
    mag_weight_steps: int = 100
    probe_steps: int = 100
    stop_at_recall: float | None = None
    kv_budget: float | None = None
    kv_length: int | None = None
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "tokens",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "tbptt_chunks",
            "mag_weight_steps",
        ):
            _check(name, getattr(self, name), 1, None, whole=True)
        for name in ("warmup_steps", "probe_steps", "seed"):
            _check(name, getattr(self, name), 0, None, whole=True)
        for name, least in (("seq_len", 16), ("write_gate_steps", 1), ("kv_length", 1)):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), least, None, whole=True)
        if self.kv_budget is not None:
            check_kv_budget(self.kv_budget)
        elif self.kv_length is not None:
            raise ValueError("kv_length says where kv_budget is counted: set kv_budget as well")
        for name in (
            "answer_weight", "filler_weight", "write_gate_weight", "fact_weight", "kl_weight", "attention_transfer_weight", "long_context_weight",
        ):  # fmt: skip
            _check(name, getattr(self, name), 0, None)
        for name in ("recall_share", "write_gate_floor"):
            _check(name, getattr(self, name), 0, 1)
        for name, most in (
            ("learning_rate", None),
            ("memory_learning_rate", None),
            ("mag_weight_start", 1),
            ("stop_at_recall", 1),
        ):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), 0, most)
        if self.stop_at_recall is not None and not self.probe_steps:
            raise ValueError("stop_at_recall needs looks at the recall: set probe_steps to 1 or more")
        if self.tbptt_chunks > 1 and self.gradient_checkpointing:
            raise ValueError("tbptt_chunks needs the cache that gradient_checkpointing takes away: use one of them")
        formats = self.recall_formats if isinstance(self.recall_formats, str) else tuple(self.recall_formats)
        object.__setattr__(self, "recall_formats", chosen_formats(formats))
        if not self.facts:
            raise ValueError("facts must hold one number or more")
        for number in self.facts:
            _check("facts", number, 1, None, whole=True)
        object.__setattr__(self, "facts", tuple(self.facts))

    def steps(self, length: int, devices: int = 1) -> int:
        """Optimizer steps with rows of ``length`` tokens on ``devices`` devices: 1 or more."""
        return max(
            1,
            round(
                self.tokens
                / (
                    self.per_device_train_batch_size
                    * self.gradient_accumulation_steps
                    * self.tbptt_chunks
                    * length
                    * devices
                )
            ),
        )


def _check(name: str, value: Any, least: float, most: float | None, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    top = math.inf if most is None else most
    if isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= top and math.isfinite(value):
        return
    kind = "a whole number" if whole else "a number"
    bounds = f"in [{least}, {most}]" if most is not None else f"of {least} or more" + ("" if whole else ", finite")
    raise ValueError(f"{name} must be {kind} {bounds}, got {value!r}")
