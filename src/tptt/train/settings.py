"""How a conversion is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tptt.convert.layer_choice import check_kv_budget
from tptt.data import chosen_formats
from tptt.fields import described, documented


@documented
@dataclass(frozen=True)
class TrainingSettings:
    """How a converted model is trained; the defaults are the best recipe that `benchmarks.conversion` found.

    Names that `transformers.TrainingArguments` has as well mean what they mean there.

    Raises:
        ValueError: a value is out of its range; the message names it and what is valid.
    """

    tokens: int = described(524_288, "Tokens of the whole training. Its optimizer steps follow from them.")
    seq_len: int | None = described(None, "Tokens of a row; null is the base's context, 512 at most.")
    per_device_train_batch_size: int = described(2, "Rows of a batch on each device.")
    gradient_accumulation_steps: int = described(1, "Batches of an optimizer step.")
    learning_rate: float | None = described(
        None,
        "Peak learning rate of LoRA and of whatever else of the base trains; null is the one for the base's "
        "hidden size (`tptt.train.default_rates`).",
    )
    memory_learning_rate: float | None = described(None, "Peak learning rate of the memory; null likewise.")
    warmup_steps: int = described(
        10,
        "Optimizer steps until the peak, half of all at most; from there the rates fall along a cosine to 0.",
    )
    recall_share: float = described(0.5, "Share of the rows that state facts and ask for them again, in [0, 1].")
    recall_formats: str | Sequence[str] = described(
        "all",
        'Formats of these rows, "all" or names in `tptt.data.FORMATS`.',
    )
    facts: Sequence[int] = described(
        (2, 4, 8, 16),
        "Numbers of facts in a recall row; one of them is drawn for each row.",
    )
    answer_weight: float = described(
        5.0,
        "Weight in the loss of the answers that a recall row asks for; text has weight 1.",
    )
    filler_weight: float = described(0.1, "Weight in the loss of all else in a recall row; text has weight 1.")
    write_gate_weight: float = described(
        0.5,
        "Weight of the write gates' own loss: what a recall row states is to be written, the rest is not.",
    )
    fact_weight: float = described(
        3.0,
        "Weight in it of tokens that state a fact over that of the others. A gate is in doubt about a form of "
        "text that it was not taught. A fact that is not written is lost; filler that is written costs "
        "little.",
    )
    write_gate_steps: int | None = described(
        512,
        "Optimizer steps after which write_gate_weight falls, by all of it in as many steps again; null: it stays. "
        "Gates that are taught for long know the forms they are taught and take others for filler.",
    )
    write_gate_floor: float = described(
        0.25,
        "Share of write_gate_weight below which it does not fall, in [0, 1]. Gates that are taught nothing any more "
        "forget what to leave out, which shows in long texts.",
    )
    allocate_widths: bool = described(
        True,
        "Make memories wide where the base needs what lies beyond the window "
        "(`tptt.convert.allocate_widths`); the mean stays feature_width.",
    )
    kl_weight: float = described(0.0, "Weight of KL(base || model) in nats per token; the base sees its whole context.")
    attention_transfer_weight: float = described(
        0.0,
        "Weight of the distance of the layers' attention outputs from the base's, beyond the window (LoLCATs, "
        "arXiv 2410.10254).",
    )
    long_context_weight: float = described(
        0.0,
        "Weight that a token of text gains for each nat by which the base predicts it better from its whole "
        "context than from the window.",
    )
    tbptt_chunks: int = described(
        1,
        "Chunks of seq_len tokens that a row has. Cache and state go on from chunk to chunk, gradients do not "
        "(truncated backpropagation through time).",
    )
    mag_weight_start: float | None = described(
        None,
        "Mu of the first step, from where it rises to the configuration's mag_weight; null: no rise.",
    )
    mag_weight_steps: int = described(100, "Optimizer steps of that rise.")
    probe_steps: int | None = described(
        100,
        "Optimizer steps between two probes of recall and perplexity. The last step is always probed; 0 "
        "probes it alone, null never probes.",
    )
    stop_at_recall: float | None = described(
        None,
        "End the training at a probe that finds recall beyond the window of at least this; null: never.",
    )
    kv_budget: float | None = described(
        None,
        'For layers="auto": share of the base\'s bytes of keys and values that the converted model may hold, '
        "in [0, 1). As many layers keep their whole context as fit (`tptt.convert.choose_layers`); states "
        "come on top.",
    )
    kv_length: int | None = described(
        None,
        "Tokens of the sequence at which these bytes are counted; null is seq_len. A window of W tokens is W "
        "/ kv_length of a layer: at the length of serving more layers fit than at that of training rows.",
    )
    bf16: bool | None = described(None, "Autocast to bfloat16; null: where the device is a GPU that has it.")
    gradient_checkpointing: bool = described(False, "Recompute activations in the backward pass.")
    seed: int = described(0, "Of rows, LoRA's start and dropout.")

    def __post_init__(self) -> None:
        for name, least, most in _WHOLE:
            _check(name, getattr(self, name), least, most, whole=True)
        for name, least, most in _NUMBERS:
            _check(name, getattr(self, name), least, most)
        for name, least, most, whole in _OPTIONAL:
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), least, most, whole)
        self._check_together()
        formats = self.recall_formats if isinstance(self.recall_formats, str) else tuple(self.recall_formats)
        object.__setattr__(self, "recall_formats", chosen_formats(formats))
        if not self.facts:
            raise ValueError("facts must hold one number or more")
        for number in self.facts:
            _check("facts", number, 1, None, whole=True)
        object.__setattr__(self, "facts", tuple(self.facts))

    def _check_together(self) -> None:
        if self.kv_budget is not None:
            check_kv_budget(self.kv_budget)
        elif self.kv_length is not None:
            raise ValueError("kv_length says where kv_budget is counted: set kv_budget as well")
        if self.stop_at_recall is not None and not self.probe_steps:
            raise ValueError("stop_at_recall needs probes of the recall: set probe_steps to 1 or more")
        if self.tbptt_chunks > 1 and self.gradient_checkpointing:
            raise ValueError("tbptt_chunks needs the cache that gradient_checkpointing takes away: use one of them")

    @property
    def needs_teacher(self) -> bool:
        """Whether the base's own predictions or attention outputs enter the loss."""
        return bool(self.kl_weight or self.attention_transfer_weight)

    def rows_per_step(self, devices: int = 1) -> int:
        """Rows of an optimizer step on ``devices`` devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * devices

    def tokens_per_step(self, seq_len: int, devices: int = 1) -> int:
        """Tokens of an optimizer step with chunks of ``seq_len`` tokens on ``devices`` devices."""
        return self.rows_per_step(devices) * self.tbptt_chunks * seq_len

    def steps(self, seq_len: int, devices: int = 1) -> int:
        """Optimizer steps, 1 or more, with chunks of ``seq_len`` tokens on ``devices`` devices."""
        return max(1, round(self.tokens / self.tokens_per_step(seq_len, devices)))


_WHOLE = (
    ("tokens", 1, None),
    ("per_device_train_batch_size", 1, None),
    ("gradient_accumulation_steps", 1, None),
    ("tbptt_chunks", 1, None),
    ("mag_weight_steps", 1, None),
    ("warmup_steps", 0, None),
    ("seed", 0, None),
)
"""Settings that are whole numbers, with the least and the largest valid value."""
_NUMBERS = (
    ("answer_weight", 0, None),
    ("filler_weight", 0, None),
    ("write_gate_weight", 0, None),
    ("fact_weight", 0, None),
    ("kl_weight", 0, None),
    ("attention_transfer_weight", 0, None),
    ("long_context_weight", 0, None),
    ("recall_share", 0, 1),
    ("write_gate_floor", 0, 1),
)
"""Settings that are numbers."""
_OPTIONAL = (
    ("seq_len", 16, None, True),
    ("write_gate_steps", 1, None, True),
    ("kv_length", 1, None, True),
    ("probe_steps", 0, None, True),
    ("learning_rate", 0, None, False),
    ("memory_learning_rate", 0, None, False),
    ("mag_weight_start", 0, 1, False),
    ("stop_at_recall", 0, 1, False),
)
"""Settings that may be None, and whether they are whole numbers."""


def _check(name: str, value: Any, least: float, most: float | None, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    top = math.inf if most is None else most
    if isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= top and math.isfinite(value):
        return
    kind = "a whole number" if whole else "a number"
    bounds = f"in [{least}, {most}]" if most is not None else f"of {least} or more" + ("" if whole else ", finite")
    raise ValueError(f"{name} must be {kind} {bounds}, got {value!r}")
