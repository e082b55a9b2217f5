"""A run of several processes (``torchrun``, ``accelerate launch``): what all of them do alike, and who writes."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

T = TypeVar("T")


def _state() -> PartialState | None:
    """accelerate's view of the processes; None where there is one, whose devices Trainer's arguments set up."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=not torch.cuda.is_available()) if several else None


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    state = _state()
    return state is None or state.is_main_process


def agreed(value: T) -> T:
    """The first process's ``value``, in every process: two machines may round what they measure differently."""
    if (state := _state()) is None:
        return value
    values = [value]
    distributed.broadcast_object_list(values, device=state.device)
    return values[0]


def any_of(number: int | None) -> int | None:
    """The largest positive ``number`` that a process has, in every process; None where none has one."""
    if (state := _state()) is None:
        return number
    largest = torch.tensor(number or 0, device=state.device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest) or None


def wait() -> None:
    """Return when all processes have come here."""
    if (state := _state()) is not None:
        state.wait_for_everyone()


def devices() -> int:
    """How many devices Trainer trains on: one for each process, or all GPUs of this one."""
    state = _state()
    return max(1, torch.cuda.device_count()) if state is None else state.num_processes


def gpu() -> torch.device | None:
    """This process's GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    state = _state()
    return torch.device("cuda") if state is None else state.device
