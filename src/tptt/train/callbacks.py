"""Trainer callbacks that move the Memory-as-Gate weight during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from transformers import TrainerCallback

from tptt.config import check_mag_weight
from tptt.hf import memories, set_mag_weight

from .schedules import constant, cyclic, gradual, switch

Schedule = Callable[[int], float]


def _single(name: str, value: Any) -> Any:
    """``value`` itself, or the one element of a tuple (``initial_weight=0.01,`` is one in Python)."""
    if isinstance(value, tuple | list):
        if len(value) != 1:
            raise ValueError(f"{name} must be one number, got {value!r}")
        return value[0]
    return value


def _weight(name: str, value: Any) -> float:
    return check_mag_weight(_single(name, value), name)


def _steps(name: str, value: Any) -> int:
    value = _single(name, value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return value


class MagWeightCallback(TrainerCallback):
    """Sets mu to ``schedule(step)`` before every step.

    ``step`` counts finished optimizer steps, so that a resumed run goes on where it was.

    Trainer's logs and ``trainer.state.log_history`` get the value of the step just done as ``mag_weight``.

    Args:
        model: a TpttModel, or any model that carries a memory.
        schedule: step -> mu in [0, 1].

    Raises:
        ValueError: ``model`` carries no memory.
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        if not memories(model):
            raise ValueError(f"{type(model).__name__} carries no memory: use a TpttModel, or attach_memory first")
        self.model, self.schedule = model, schedule
        self.mag_weight: float | None = None

    def _set(self, step: int) -> None:
        value = self.schedule(step)
        if value != self.mag_weight:
            set_mag_weight(self.model, value)
            self.mag_weight = value

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.mag_weight = None  # a resumed run has loaded other values since
        self._set(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._set(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.mag_weight is None:
            return
        if logs is not None:
            logs["mag_weight"] = self.mag_weight
        if state.log_history:  # Trainer appends a copy of logs before it calls this
            state.log_history[-1]["mag_weight"] = self.mag_weight


class AdjustMaGWeightCallback(MagWeightCallback):
    """A linear ramp of mu.

    Args:
        model: a TpttModel, or any model that carries a memory.
        initial_weight: mu of step 0, in [0, 1].
        final_weight: mu from ``transition_step`` on, in [0, 1].
        transition_step: length of the ramp in optimizer steps, 1 or more.
        Each number may stand in a one-element tuple.

    Raises:
        ValueError: a value is out of its range, or ``model`` carries no memory.
    """

    def __init__(
        self, model: nn.Module, initial_weight: Any = 0.01, final_weight: Any = 0.5, transition_step: Any = 100
    ) -> None:
        initial, final = _weight("initial_weight", initial_weight), _weight("final_weight", final_weight)
        steps = _steps("transition_step", transition_step)
        super().__init__(model, partial(gradual, initial=initial, final=final, transition_step=steps))


@dataclass(frozen=True)
class _Options:
    """What `LiZACallback` was given, checked."""

    initial: float
    final: float
    transition_step: int
    weight_list: Sequence[float] | None
    period: int


def _constant(options: _Options) -> Schedule:
    return partial(constant, weight=options.final)


def _gradual(options: _Options) -> Schedule:
    return partial(gradual, initial=options.initial, final=options.final, transition_step=options.transition_step)


def _cyclic(options: _Options) -> Schedule:
    weights = options.weight_list
    if not isinstance(weights, tuple | list) or not weights:
        raise ValueError(f'mode "cyclic" needs weight_list, a list of numbers in [0, 1], got {weights!r}')
    checked = tuple(_weight(f"weight_list[{i}]", weight) for i, weight in enumerate(weights))
    return partial(cyclic, weights=checked, period=options.period)


def _switch(options: _Options) -> Schedule:
    return partial(switch, initial=options.initial, final=options.final, period=options.period)


_MODES: dict[str, Callable[[_Options], Schedule]] = {
    "constant": _constant,
    "gradual": _gradual,
    "cyclic": _cyclic,
    "switch": _switch,
}


class LiZACallback(MagWeightCallback):
    """mu by one of four schedules.

    Args:
        model: a TpttModel, or any model that carries a memory.
        mode: "constant" (``final_weight`` always), "gradual" (a line from ``initial_weight`` to ``final_weight`` over
            ``transition_step`` steps), "cyclic" (the values of ``weight_list`` in turn), "switch" (``initial_weight``
            and ``final_weight`` in turn; 0 switches the memory off).
        initial_weight, final_weight: in [0, 1].
        transition_step: optimizer steps, 1 or more.
        weight_list: for "cyclic", each in [0, 1].
        switch_period: optimizer steps that "cyclic" and "switch" stay at a value, 1 or more.

    Raises:
        ValueError: unknown mode, a value out of its range, or ``model`` carries no memory.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: str = "gradual",
        initial_weight: Any = 0.0,
        final_weight: Any = 0.5,
        transition_step: Any = 100,
        weight_list: Sequence[float] | None = None,
        switch_period: Any = 1,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}; valid are {', '.join(_MODES)}")
        options = _Options(
            _weight("initial_weight", initial_weight),
            _weight("final_weight", final_weight),
            _steps("transition_step", transition_step),
            weight_list,
            _steps("switch_period", switch_period),
        )
        self.mode = mode
        super().__init__(model, _MODES[mode](options))
