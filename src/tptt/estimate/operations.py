"""The floating-point operations of a training, counted by torch's `FlopCounterMode` on the model without weights.

Only matrix products and triangular solves count, as everywhere in the field: what is done element by element is in the
share of the peak that a device is assumed to reach.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from tptt.hf import as_base
from tptt.hf.modes import in_eval_mode

from .meta_model import cast
from .passes import Counted, MemoryCall, count_memory, count_pass


@dataclass(frozen=True)
class Operations:
    """Floating-point operations per token of a training.

    Args:
        base: of the base with LoRA, in the dtype that matrix products are computed in.
        memory: of the memories and their gates, by dtype: in float32, and in float64 where sums of keys would lose
            precision (see `tptt.ops`).
    """

    base: float
    memory: dict[torch.dtype, float]

    @property
    def total(self) -> float:
        return self.base + sum(self.memory.values())


@dataclass(frozen=True)
class Step:
    """What an optimizer step computes, as far as operations depend on it.

    Args:
        rows, length: of a batch, in rows and tokens.
        recompute: whether activations are recomputed in the backward pass.
        teacher: forward passes of the base with its whole context, per row.
        text: share of the rows that the base also reads twice more, with its whole context and with the window alone,
            to weigh their tokens.
    """

    rows: int
    length: int
    recompute: bool = False
    teacher: bool = False
    text: float = 0.0


_SPLIT = torch.bfloat16
"""The base is counted in this dtype, whatever it is computed in, so that what stays in float32 can be told from it."""


class OperationCounter:
    """Counts passes of ``model``, which lies on the meta device, once each. It turns the base into bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._passes: dict[tuple, Counted] = {}
        self._memories: dict[tuple, Counter[torch.dtype]] = {}

    def per_token(self, step: Step) -> Operations:
        """The operations of a training with such steps, per token of its rows."""
        shape = step.rows, step.length
        student = self.counted(*shape, train=True, recompute=step.recompute)
        total = Counter(student.operations)
        for memory, call in student.calls.items():
            total.update(self._inside(memory, call, step.recompute))
        found = Operations(*_parts(total))
        base, memory_parts = found.base, Counter(found.memory)
        for share, window in ((step.teacher + step.text, False), (step.text, True)):
            if share:
                of_base, other = _parts(
                    self.counted(*shape, train=False, base="window" if window else "whole").operations
                )
                base += share * of_base
                memory_parts.update({dtype: share * n for dtype, n in other.items()})
        tokens = step.rows * step.length
        return Operations(base / tokens, {dtype: n / tokens for dtype, n in memory_parts.items()})

    def counted(self, rows: int, length: int, train: bool, recompute: bool = False, base: str | None = None) -> Counted:
        """One pass; ``base`` "whole" or "window" is that of the base itself, LoRA and memory off, with such a
        context."""
        key = rows, length, train, recompute, base
        if key not in self._passes:
            self._passes[key] = self._count(*key)
        return self._passes[key]

    def _count(self, rows: int, length: int, train: bool, recompute: bool, base: str | None) -> Counted:
        cast(self.model, _SPLIT)
        if base is None:
            return count_pass(self.model, rows, length, train, recompute)
        with in_eval_mode(self.model), as_base(self.model, base == "window"):
            return count_pass(self.model, rows, length, train)

    def _inside(self, memory: nn.Module, call: MemoryCall, recompute: bool) -> Counter[torch.dtype]:
        key = repr(memory), tuple(p.shape for p in memory.parameters()), call, recompute
        if key not in self._memories:
            self._memories[key] = count_memory(memory, call, recompute=recompute)
        return self._memories[key]


def _parts(found: Counter[torch.dtype]) -> tuple[float, dict[torch.dtype, float]]:
    """What is done in `_SPLIT`, and the rest by dtype."""
    return found[_SPLIT], {dtype: n for dtype, n in found.items() if dtype != _SPLIT and n}
