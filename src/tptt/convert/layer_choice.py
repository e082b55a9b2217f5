"""What `choose_layers` decided, and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tptt.config import MemoryConfig
from tptt.evaluation import markdown_table


@dataclass(frozen=True)
class Round:
    """One decision: KL(base || model) in nats per token with each candidate changed as well, and the layer taken."""

    kl: dict[int, float]
    taken: int


@dataclass(frozen=True)
class LayerChoice:
    """Which layers keep their whole context, and the numbers behind it.

    Args:
        kv_budget: asked for: share of the base's bytes of keys and values.
        length: tokens of a sequence at which the bytes are counted.
        whole: layers that keep the base's attention, in the order in which they were taken.
        memory: all others, ascending; they have a memory.
        memory_only: those of ``memory`` that have no softmax and hold no keys and values.
        start: KL(base || model) in nats per token with a window in every layer.
        rounds: the decisions in their order.
        base_bytes, kv_bytes: keys and values of one sequence of the base and of this model, at ``length``.
        state_bytes: of the memories' states, which do not grow and which the budget does not count.
    """

    kv_budget: float
    length: int
    whole: tuple[int, ...]
    memory: tuple[int, ...]
    memory_only: tuple[int, ...]
    start: float
    rounds: tuple[Round, ...]
    base_bytes: int
    kv_bytes: int
    state_bytes: int

    @property
    def share(self) -> float:
        """Share of the base's keys and values that this model holds."""
        return self.kv_bytes / self.base_bytes

    @property
    def end(self) -> float:
        """KL(base || model) in nats per token after the last decision."""
        return self.rounds[-1].kl[self.rounds[-1].taken] if self.rounds else self.start

    @property
    def settings(self) -> dict[str, Any]:
        """What `MemoryConfig` and `TpttConfig` take: ``layers`` and ``memory_only_layers``."""
        return {"layers": self.memory, "memory_only_layers": self.memory_only}

    def harden(self, config: MemoryConfig) -> MemoryConfig:
        """``config`` for these layers."""
        return replace(config, **self.settings)

    def table(self) -> str:
        """The decisions as Markdown."""
        numbers = sorted({n for x in self.rounds for n in x.kl})
        rows = [["windows everywhere", f"{self.start:.4f}", *[""] * len(numbers)]]
        for x in self.rounds:
            kind = "whole" if x.taken in self.whole else "memory alone"
            each = (f"{x.kl[n]:.4f}" if n in x.kl else "" for n in numbers)
            rows.append([f"layer {x.taken}: {kind}", f"{x.kl[x.taken]:.4f}", *each])
        return markdown_table(["", "KL, nats per token", *(f"layer {n}" for n in numbers)], rows)

    def __str__(self) -> str:
        only = f", layers {list(self.memory_only)} memory alone" if self.memory_only else ""
        return (
            f"layers {list(self.whole)} keep their whole context, layers {list(self.memory)} have a memory{only}: KL "
            f"to the base {self.start:.4f} -> {self.end:.4f} nats per token before training; keys and values "
            f"{self.share:.1%} of the base's at {self.length} tokens (budget {self.kv_budget:.1%}), and "
            f"{self.state_bytes / 1024:.0f} KiB of states"
        )


def check_kv_budget(value: object) -> float:
    """``value`` as a share of the base's keys and values.

    Raises:
        ValueError: it is no number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ValueError(
            "kv_budget must be a number in [0, 1), the share of the base's keys and values that may remain (1 is the "
            f"base itself), got {value!r}"
        )
    return float(value)
