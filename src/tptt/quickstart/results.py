"""What a run found."""

from __future__ import annotations

from dataclasses import dataclass, field

from tptt.evaluation import CacheSize, RecallScore
from tptt.train.probe import ProbeResult

from .measures import Measures


@dataclass
class Results:
    """Filled stage by stage; arms are "base", "window alone" and "converted"."""

    base_model: str
    length: int
    window: int
    parameters: int = 0
    trained: dict[str, int] = field(default_factory=dict)  # arm -> parameters that train
    tokens: int = 0
    measures: dict[str, Measures] = field(default_factory=dict)
    by_format: dict[str, dict[str, RecallScore | None]] = field(default_factory=dict)  # of base and converted
    histories: dict[str, list[dict]] = field(default_factory=dict)
    probe_results: list[ProbeResult] = field(default_factory=list)  # of the converted model, the last after training
    warnings: list[str] = field(default_factory=list)  # of the branches
    held: dict[str, list[CacheSize]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    generated: str = ""
    reloaded: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
