"""Checks of a call's arguments, before any computation: what was wrong and what is expected."""

import itertools
import math

import torch


def check_arguments(q, k, v, beta, g, initial_state):
    """Raise TypeError for a wrong type or dtype, ValueError for a wrong shape or device. Reads no values."""
    tensors = {"q": q, "k": k, "v": v, "beta": beta, "g": g, "initial_state": initial_state}
    given = {name: x for name, x in tensors.items() if x is not None or name in ("q", "k", "v")}
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}")
        if x.device != k.device:
            raise ValueError(f"{name} is on {x.device}, but k is on {k.device}; all tensors must share one device")
    _check_shapes(given)


def _check_shapes(given):
    q, k, v = given["q"], given["k"], given["v"]
    for name, x, dims in (("q", q, (4,)), ("k", k, (4, 5)), ("v", v, (k.dim(),))):
        if x.dim() not in dims:
            more = " or 5 dimensions [batch, tokens, writes, heads, width]" if len(dims) > 1 or dims == (5,) else ""
            expected = f"4 dimensions [batch, tokens, heads, width]{more}"
            raise ValueError(f"{name} must have {expected}, got shape {list(x.shape)}; k and v have equally many")
    *leading, heads, key_width = k.shape
    batch, tokens, value_width = k.shape[0], k.shape[1], v.shape[-1]
    if 0 in (batch, *leading[2:], heads, key_width, value_width):
        shapes = f"k {list(k.shape)} and v {list(v.shape)}"
        raise ValueError(f"batch, writes, heads and widths must be at least 1 (tokens may be 0), got {shapes}")
    expected = {
        "v": [(*leading, heads, value_width)],
        "beta": [(*leading, heads)],
        "g": [(batch, tokens, heads), (batch, tokens, heads, key_width)],
        "initial_state": [(batch, heads, key_width, value_width)],
    }
    for name, shapes in expected.items():
        if name in given and tuple(given[name].shape) not in shapes:
            wanted, got = " or ".join(str(list(s)) for s in shapes), list(given[name].shape)
            raise ValueError(f"{name} must have shape {wanted} to go with k {list(k.shape)}, got {got}")
    if q.shape[:2] != (batch, tokens) or q.shape[3] != key_width or q.shape[2] % heads or not q.shape[2]:
        wanted = f"[{batch}, {tokens}, a multiple of {heads}, {key_width}]"
        raise ValueError(f"q must have shape {wanted} to go with k {list(k.shape)}, got {list(q.shape)}")


def check_values(beta, g, most):
    """Raise ValueError for a beta outside [0, most] or a g above 0; reads every value. For debugging."""
    for name, x, low, high in (("beta", beta, 0.0, most), ("g", g, -math.inf, 0.0)):
        if x is not None and x.numel() and not bool(((x >= low) & (x <= high)).all()):
            worst = f"{float(x.min()):.6g} to {float(x.max()):.6g}"
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {worst}")


def check_cu_seqlens(cu_seqlens, k, initial_state):
    """cu_seqlens as a list; raise TypeError or ValueError unless it cuts k [1, T, ...] into sequences of one token or more."""
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        got = cu_seqlens.dtype if isinstance(cu_seqlens, torch.Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens must be a tensor of int32 or int64, got {got}")
    if k.shape[0] != 1:
        raise ValueError(f"packed sequences lie in one row: with cu_seqlens the batch must be 1, got {k.shape[0]}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"cu_seqlens must have shape [sequences + 1], got {list(cu_seqlens.shape)}")
    cuts = cu_seqlens.tolist()
    if cuts[0] != 0 or cuts[-1] != k.shape[1] or any(b <= a for a, b in itertools.pairwise(cuts)):
        raise ValueError(f"cu_seqlens must ascend from 0 to T = {k.shape[1]}, got {cuts}")
    count = len(cuts) - 1
    if initial_state is not None and initial_state.shape[0] != count:
        raise ValueError(f"initial_state must have one state per sequence, {count}, got {initial_state.shape[0]}")
    return cuts


def check_chunk_size(chunk_size):
    """Raise ValueError unless chunk_size is None or a power of two."""
    if chunk_size is None:
        return
    if not isinstance(chunk_size, int) or chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size must be None or a power of two such as 32, got {chunk_size!r}")
