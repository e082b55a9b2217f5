"""Memory-as-Gate weight mu as a function of the optimizer step, counted from 0. Pure: no state, no model."""

from __future__ import annotations

from collections.abc import Sequence


def constant(step: int, weight: float) -> float:
    """``weight`` at every step."""
    return weight


def gradual(step: int, initial: float, final: float, transition_step: int) -> float:
    """A line from ``initial`` at step 0 to ``final`` at ``transition_step``, then ``final``."""
    part = min(1.0, step / transition_step)
    return (1.0 - part) * initial + part * final


def cyclic(step: int, weights: Sequence[float], period: int = 1) -> float:
    """``weights`` in turn and again from the first, each for ``period`` steps."""
    return weights[step // period % len(weights)]


def switch(step: int, initial: float, final: float, period: int = 1) -> float:
    """``initial`` and ``final`` in turn, each for ``period`` steps."""
    return cyclic(step, (initial, final), period)
