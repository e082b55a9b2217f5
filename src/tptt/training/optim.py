"""Parameters in groups for the optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from tptt.surgery import memories


def parameter_groups(
    model: nn.Module, lr: float = 2.5e-3, memory_lr: float = 1e-2, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The trainable parameters of ``model``: the memory's at ``memory_lr``, all others (LoRA) at ``lr``.

    ``weight_decay`` applies to the other matrices only: what the memory starts from (identity maps, measured scales)
    must not decay. Give the result to an optimizer and that to Trainer: with ``optimizers=(AdamW(groups), None)`` the
    schedule of its arguments moves both rates.

    Raises:
        ValueError: nothing trains, or a rate is negative.
    """
    for name, value in (("lr", lr), ("memory_lr", memory_lr), ("weight_decay", weight_decay)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value!r}")
    owned = {id(p) for memory in memories(model) for p in memory.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(model).__name__} has no parameter that trains")
    others = [p for p in trained if id(p) not in owned]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in owned], "lr": memory_lr, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
