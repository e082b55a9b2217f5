"""LoRA on the projections that a memory reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from tptt.hf import find_attention


def lora_targets(base: nn.Module, layout: str | Mapping[str, Any] | None = None) -> list[str]:
    """Names of the attention projections of ``base`` that are matrices: those that the memory reads, and the output's.

    Args:
        base: the model; its weights may lie on the meta device.
        layout: as ``MemoryConfig.attention_layout``.

    Raises:
        UnsupportedAttentionError: ``base`` has no attention of a known layout.
    """
    attention = find_attention(base, layout)[0]
    return [n for n in attention.sizes.layout.parts if getattr(attention.module, n).weight.ndim == 2]


def lora_config(
    base: nn.Module,
    r: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    target_modules: str | Sequence[str] = "auto",
    layout: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """``peft.LoraConfig(...).to_dict()``; ``target_modules="auto"`` are the `lora_targets` of ``base``, anything else
    goes to peft as it is.
    """
    if target_modules == "auto":
        target_modules = lora_targets(base, layout)
    elif not isinstance(target_modules, str):
        target_modules = list(target_modules)
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=target_modules,
    ).to_dict()
