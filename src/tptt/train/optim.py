"""Parameters in groups for the optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from tptt.hf import memories

_LR, _MEMORY_LR, _HIDDEN = 5e-3, 2e-2, 128


def default_rates(hidden_size: int) -> tuple[float, float]:
    """Peak learning rates of LoRA and of the memory for a base of that hidden size: 5e-3 and 2e-2 at 128.

    They fall with the root of the size. At 128 a half and a doubling of them are worse (`benchmarks.conversion`), at
    512 half of them converts well; LoRA's best rate falls with the hidden size between families too (Schulman et al.
    2025, "LoRA Without Regret": exponent -.78). Wider bases were not measured.
    """
    scale = (_HIDDEN / hidden_size) ** 0.5
    return _LR * scale, _MEMORY_LR * scale


def peak_rates(
    model: nn.Module, learning_rate: float | None = None, memory_learning_rate: float | None = None
) -> tuple[float, float]:
    """``learning_rate`` and ``memory_learning_rate``, those that are None by `default_rates` for ``model.config``."""
    if learning_rate is not None and memory_learning_rate is not None:
        return learning_rate, memory_learning_rate
    of_lora, of_memory = default_rates(model.config.get_text_config(decoder=True).hidden_size)
    return (
        of_lora if learning_rate is None else learning_rate,
        of_memory if memory_learning_rate is None else memory_learning_rate,
    )


def parameter_groups(
    model: nn.Module,
    learning_rate: float | None = None,
    memory_learning_rate: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Optimizer groups of what trains in ``model``: the memory at ``memory_learning_rate``, LoRA at ``learning_rate``.

    A rate of None is that of `default_rates` for ``model.config``.

    ``weight_decay`` applies to the other matrices only: what the memory starts from (identity maps, measured scales)
    must not decay. Give the result to an optimizer and that to Trainer: with ``optimizers=(AdamW(groups), None)`` the
    schedule of its arguments moves both rates.

    Raises:
        ValueError: nothing trains, or a rate is negative.
    """
    learning_rate, memory_learning_rate = peak_rates(model, learning_rate, memory_learning_rate)
    for name, value in (
        ("learning_rate", learning_rate),
        ("memory_learning_rate", memory_learning_rate),
        ("weight_decay", weight_decay),
    ):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value!r}")
    owned = {id(p) for memory in memories(model) for p in memory.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(model).__name__} has no parameter that trains")
    others = [p for p in trained if id(p) not in owned]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in owned], "lr": memory_learning_rate, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
