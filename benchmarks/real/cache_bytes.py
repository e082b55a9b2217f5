"""Bytes of cache by length: the base's keys and values against window and state of the default conversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tptt import MemoryConfig, attach_memory
from tptt.evaluation import CacheFormula

LENGTHS = tuple(1024 * 2**i for i in range(8))
"""1k to 128k tokens."""


def formulas(base_folder: Path, window: int = 64) -> tuple[CacheFormula, CacheFormula]:
    """What the base's cache holds, and that of the base with the default memory and a window of ``window`` tokens, in
    float32. Only the configuration in ``base_folder`` is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base_folder)
    with torch.device("meta"):
        base, other = (AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval() for _ in range(2))
        converted = attach_memory(other, MemoryConfig(max_self_attn_length=window))
    return CacheFormula.of(base), CacheFormula.of(converted)


def worst_difference(base: CacheFormula, lines: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """(largest relative difference between the bytes that the base's caches held and what ``base`` computes for as
    many tokens, number of caches)."""
    worst, count = 0.0, 0
    for line in lines:
        if line.get("context_tokens"):
            computed = base.after(line["context_tokens"]).bytes
            worst, count = max(worst, abs(line["bytes_at_question"] - computed) / computed), count + 1
    return worst, count
