"""LoRA on the projections that a memory reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from tptt.hf import find_attention


def lora_targets(base: nn.Module, layout: str | Mapping[str, Any] | None = None) -> list[str]:
    """Names of the attention projections of ``base`` that are matrices: what the memory reads, and the output projection.

    Args:
        base: the model; its weights may lie on the meta device.
        layout: as ``MemoryConfig.attention_layout``.

    Raises:
        UnsupportedAttentionError: ``base`` has no attention of a known layout.
    """
    attention = find_attention(base, layout)[0]
    return [n for n in attention.sizes.layout.parts if getattr(attention.module, n).weight.ndim == 2]


def lora_config(
    base: nn.Module, rank: int = 8, alpha: float = 16, dropout: float = 0.0, targets: str | Sequence[str] = "auto",
    layout: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``LoraConfig(...).to_dict()``; ``targets`` are `lora_targets` ("auto"), or what peft takes as ``target_modules``."""
    chosen = lora_targets(base, layout) if targets == "auto" else targets if isinstance(targets, str) else list(targets)
    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", task_type="CAUSAL_LM", target_modules=chosen
    ).to_dict()
