"""The one rule about precision: the state, and all arithmetic on it, is float32; float64 for float64 inputs."""

from contextlib import nullcontext

import torch


def state_dtype(*tensors):
    """dtype of the state: float64 if any tensor is float64, else float32."""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


def wide_dtype(device):
    """dtype for the few sums whose float32 rounding would add up over the sequence: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def without_autocast(device_type):
    """A context in which autocast leaves the arithmetic as it is."""
    casts = device_type != "meta" and torch.is_autocast_enabled(device_type)  # torch has no autocast for meta tensors
    return torch.autocast(device_type, enabled=False) if casts else nullcontext()
