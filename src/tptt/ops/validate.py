"""Checks of a call's arguments, before any computation: what was wrong and what is expected."""

import torch


def check_arguments(q, k, v, beta, g, initial_state):
    """Raise TypeError for a wrong type or dtype, ValueError for a wrong shape or device. Reads no values."""
    tensors = {"q": q, "k": k, "v": v, "beta": beta, "g": g, "initial_state": initial_state}
    given = {name: x for name, x in tensors.items() if x is not None or name in ("q", "k", "v", "beta")}
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}")
        if x.device != k.device:
            raise ValueError(f"{name} is on {x.device}, but k is on {k.device}; all tensors must share one device")
    _check_shapes(given, k)


def _check_shapes(given, k):
    for name in ("q", "k", "v"):
        if given[name].dim() != 4:
            expected = "[batch, tokens, heads, width]"
            raise ValueError(f"{name} must have 4 dimensions {expected}, got shape {list(given[name].shape)}")
    batch, tokens, heads, key_width = k.shape
    value_width = given["v"].shape[3]
    if 0 in (batch, heads, key_width, value_width):
        shapes = f"k {list(k.shape)} and v {list(given['v'].shape)}"
        raise ValueError(f"batch, heads and widths must be at least 1 (tokens may be 0), got {shapes}")
    expected = {
        "v": (batch, tokens, heads, value_width),
        "beta": (batch, tokens, heads),
        "g": (batch, tokens, heads),
        "initial_state": (batch, heads, key_width, value_width),
    }
    for name, shape in expected.items():
        if name in given and given[name].shape != shape:
            got = list(given[name].shape)
            raise ValueError(f"{name} must have shape {list(shape)} to go with k {list(k.shape)}, got {got}")
    q = given["q"]
    if q.shape[:2] != (batch, tokens) or q.shape[3] != key_width or q.shape[2] % heads or not q.shape[2]:
        wanted = f"[{batch}, {tokens}, a multiple of {heads}, {key_width}]"
        raise ValueError(f"q must have shape {wanted} to go with k {list(k.shape)}, got {list(q.shape)}")


def check_chunk_size(chunk_size):
    """Raise ValueError unless chunk_size is None or a power of two."""
    if chunk_size is None:
        return
    if not isinstance(chunk_size, int) or chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size must be None or a power of two such as 32, got {chunk_size!r}")
