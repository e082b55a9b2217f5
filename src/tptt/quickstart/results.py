"""What a run found."""

from __future__ import annotations

from dataclasses import dataclass, field

from tptt.evaluation import CacheSize, RecallScore
from tptt.train.loop import Converted

from .measures import Measures

ARMS = ("base", "window alone", "converted")
"""What is compared: the base; the base with a window and LoRA, trained alike; the converted model."""


@dataclass
class Results:
    """Filled stage by stage; dictionaries go by arm."""

    base_model: str
    seq_len: int
    window: int
    parameters: int = 0
    trained: dict[str, int] = field(default_factory=dict)  # parameters that train
    tokens: int = 0
    measures: dict[str, Measures] = field(default_factory=dict)
    by_format: dict[str, dict[str, RecallScore | None]] = field(default_factory=dict)  # of base and converted
    losses: dict[str, list[dict]] = field(default_factory=dict)  # Trainer's log entries that hold a loss
    converted: Converted | None = None
    held: dict[str, list[CacheSize]] = field(default_factory=dict)  # of base and converted
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    generated: str = ""
    reloaded: dict = field(default_factory=dict)
    plots: bool = False
    notes: list[str] = field(default_factory=list)
