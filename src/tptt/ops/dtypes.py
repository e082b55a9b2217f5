"""The one rule about precision: the state, and all arithmetic on it, is float32; float64 for float64 inputs."""

import torch


def state_dtype(*tensors):
    """dtype of the state: float64 if any tensor is float64, else float32."""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


def wide_dtype(device):
    """dtype for the few sums whose float32 rounding would add up over the whole sequence: float64 where it exists."""
    return torch.float32 if device.type == "mps" else torch.float64
