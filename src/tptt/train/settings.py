"""How a conversion is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tptt.convert.choose_layers import check_kv_budget
from tptt.data import chosen_formats
from tptt.fields import described, documented


@documented
@dataclass(frozen=True)
class TrainingSettings:
    """How a converted model is trained; the defaults are the best recipe that `benchmarks.conversion` found.

    Raises:
        ValueError: a value is out of its range; the message names it and what is valid.
    """

    tokens: int = described(
        524_288,
        "In all, in optimizer steps of per_device_train_batch_size * gradient_accumulation_steps rows (on each "
        "device) of seq_len tokens.",
    )
    seq_len: int | None = described(None, "Tokens of a row; null is the base's context, 512 at most.")
    per_device_train_batch_size: int = described(2, "Rows of a batch on each device.")
    gradient_accumulation_steps: int = described(1, "Batches of an optimizer step.")
    learning_rate: float | None = described(
        None,
        "Peak learning rate of LoRA and whatever else of the base trains; null is the one for the base's width "
        "(`tptt.train.default_rates`).",
    )
    memory_learning_rate: float | None = described(None, "Peak learning rate of the memory; null likewise.")
    warmup_steps: int = described(10, "Optimizer steps until the peak; from there the rates fall along a cosine to 0.")
    recall_share: float = described(0.5, "Part of the rows that state facts and ask for them again, in [0, 1].")
    recall_formats: str | Sequence[str] = described("all", '"all" or names of `tptt.data.FORMATS`.')
    facts: Sequence[int] = described((2, 4, 8, 16), "Facts of a recall row, one of these drawn for each.")
    answer_weight: float = described(
        5.0,
        "Weight in the loss of asked answers and of all else in a recall row; text has 1.",
    )
    filler_weight: float = described(
        0.1,
        "Weight in the loss of asked answers and of all else in a recall row; text has 1.",
    )
    write_gate_weight: float = described(
        0.5,
        "Weight in the loss of the write gates' own one: what a recall row states is to be written, the rest not.",
    )
    fact_weight: float = described(
        3.0,
        "In that, weight of what is stated over that of the rest. A gate that was not taught a form of text is in "
        "doubt there, and a fact that is not written is lost, while a filler word that is costs little.",
    )
    write_gate_steps: int | None = described(
        512,
        "Optimizer steps after which write_gate_weight falls, by all of it in as many again; null: it stays. Gates "
        "that are told for long know the forms they are taught in, and take others for filler.",
    )
    write_gate_floor: float = described(
        0.25,
        "Part of write_gate_weight below which it does not fall, in [0, 1]. Gates that are told nothing forget what "
        "to leave out, which long rows bring to light.",
    )
    allocate_widths: bool = described(
        True,
        "Give layers memories as wide as what the base needs from beyond their window (`allocate_widths`); the mean "
        "stays feature_width.",
    )
    kl_weight: float = described(
        0.0,
        "Weight of the KL divergence of the base's predictions, with its whole context, from the model's.",
    )
    attention_transfer_weight: float = described(
        0.0,
        "Weight of the distance between what the layers give out and what the base's own give out, beyond the window.",
    )
    long_context_weight: float = described(
        0.0,
        "What a nat adds to the weight of a token of text by which the base predicts it better from its whole "
        "context than from the window.",
    )
    tbptt_chunks: int = described(
        1,
        "Pieces of seq_len tokens that a row has; state and window go on from piece to piece, gradients do not.",
    )
    mag_weight_start: float | None = described(
        None,
        "Mu of the first step where it is to rise from there to the configuration's mag_weight; null leaves it.",
    )
    mag_weight_steps: int = described(100, "Steps of that rise.")
    probe_steps: int = described(100, "Steps between two looks at the memory's share of the work (0: none).")
    stop_at_recall: float | None = described(
        None,
        "Training ends when a look finds recall beyond the window of at least this; null: never.",
    )
    kv_budget: float | None = described(
        None,
        'For layers="auto": share of the base\'s bytes of keys and values that the converted model may hold, in [0, '
        "1); as many layers keep their whole context as fit (`tptt.convert.choose_layers`). States come on top.",
    )
    kv_length: int | None = described(
        None,
        "Tokens of a sequence at which that is counted; null is seq_len. A window of W is W / kv_length of a layer, "
        "so that at the length you will serve more layers fit than at that of the rows.",
    )
    bf16: bool | None = described(None, "Autocast to bfloat16; null where the device is a GPU that has it.")
    gradient_checkpointing: bool = described(False, "Recompute activations in the backward pass.")
    seed: int = described(0, "Of all that is drawn.")

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
