"""RunOptions: all that a training run is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml

from tptt.config import MemoryConfig, one_of
from tptt.fields import described, documented
from tptt.train.settings import TrainingSettings

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "4bit")


@documented
@dataclass(frozen=True)
class RunOptions:
    """All that a training run is given.

    ``memory`` and ``training`` are the one nesting: in a run file their fields are keys beside the others. One default
    differs from theirs: a run chooses its window (``max_self_attn_length="auto"``).

    Raises:
        ValueError: a value is not valid; the message names it and what is valid.
    """

    base_model: str | None = described(
        None,
        "Path or hub id of a causal language model, or path of a .gguf file. Null is the small base that comes with "
        "the package.",
    )
    base_model_revision: str | None = described(None, "Branch, tag or commit of the base on the hub.")
    base_gguf_file: str | None = described(
        None, "Name of a GGUF file in the folder or hub repository base_model, where that holds the base."
    )
    trust_remote_code: bool = described(False, "Let code that comes with the base run.")
    base_config: str | None = described(
        None,
        "JSON file with the base's configuration, for a dry run without the base. In a run file the path is relative "
        "to that file.",
    )
    data: str | None = described(
        None,
        "Text file, folder, pattern of file names, table or data set of the hub. Null is the running Python's "
        "documentation.",
    )
    data_config_name: str | None = described(None, "Configuration of a data set, where it has several.")
    data_split: str | None = described(None, "Split of a data set; null is train.")
    column: str = described("text", "Column of a table or data set that holds the text.")
    output_dir: str = described(
        "tptt-train-out", "Folder to write. It must be empty, or hold the run that is to be resumed."
    )
    resume_from_checkpoint: bool = described(
        False, "Go on from the last complete checkpoint in output_dir; start from the beginning where there is none."
    )
    save_steps: int = described(500, "Optimizer steps between two checkpoints to resume from; 0 saves none.")
    lora_r: int = described(8, "Rank of LoRA; 0 trains the whole base instead.")
    lora_alpha: float = described(16.0, "Scale of LoRA: its product is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = described(0.0, "Share of LoRA's inputs that are dropped in training, in [0, 1).")
    lora_target_modules: str | Sequence[str] = described(
        "auto",
        "Names of the modules that get LoRA, or a regular expression for them. auto: the projections that the memory "
        "reads and the output projection.",
    )
    dtype: str = described("auto", f"Data type of the base's weights: {', '.join(DTYPES)}. auto: its checkpoint's.")
    quantization: str = described(
        "none", "How the frozen base is quantised: none, or 4bit (NF4 with double quantisation by bitsandbytes)."
    )
    attn_implementation: str | None = described(
        None, 'Attention implementation of the base; a window needs "sdpa" or "eager". Null is transformers\' choice.'
    )
    hardware: str | None = described(
        None, "Device that a dry run is made for, a name in tptt.estimate.hardware.HARDWARE. Null is all of them."
    )
    memory: MemoryConfig = field(default_factory=lambda: MemoryConfig(max_self_attn_length="auto"))
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        one_of("quantization", self.quantization, QUANTIZATIONS)
        for name in ("lora_r", "save_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha must be more than 0 and finite, got {self.lora_alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be a number in [0, 1), got {self.lora_dropout}")
        if self.quantization != "none" and not self.lora_r:
            raise ValueError("quantization 4bit freezes the base: it needs lora_r of 1 or more, got 0")

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> RunOptions:
        """Options from {key: value}; keys that are not given are as by default.

        Raises:
            ValueError: a value is not valid.
        """

        def given(kind: type) -> dict[str, Any]:
            return {f.name: values[f.name] for f in fields(kind) if f.name in values}

        default = cls()
        return replace(
            default,
            **given(cls),
            memory=replace(default.memory, **given(MemoryConfig)),
            training=replace(default.training, **given(TrainingSettings)),
        )

    def flat(self) -> dict[str, Any]:
        """{key: value} of all keys."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PARTS}
        parts = (getattr(self, name) for name in PARTS)
        return own | {f.name: getattr(part, f.name) for part in parts for f in fields(part)}

    def changed(self, **values: Any) -> RunOptions:
        """These options with other values of some keys."""
        return self.from_flat(self.flat() | values)

    def not_default(self) -> dict[str, Any]:
        """{key: value} of the keys that are not as by default."""
        default = RunOptions().flat()
        return {key: value for key, value in self.flat().items() if value != default[key]}

    def to_yaml(self) -> str:
        """All keys with their values, as a run file."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in self.flat().items()}
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


PARTS: dict[str, type] = {"memory": MemoryConfig, "training": TrainingSettings}
"""Fields of `RunOptions` whose own fields are keys."""
