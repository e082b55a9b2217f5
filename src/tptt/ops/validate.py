"""Checks of a call's arguments, before any computation: what was wrong and what is expected."""

import itertools
import math

import torch

NAMES = ("q", "k", "v", "beta", "g", "initial_state")
NEEDED = ("q", "k", "v")


def check_kinds(kinds):
    """Raise TypeError for a wrong type or dtype and ValueError for a wrong shape or device.

    Args: kinds, one each for q, k, v, beta, g and initial_state: (shape, dtype, device, ...) of a tensor, None of None,
    and of anything else its type.
    """
    shapes, device = {}, None if kinds[1] is None or isinstance(kinds[1], type) else kinds[1][2]
    for name, kind in zip(NAMES, kinds, strict=True):
        if kind is None and name not in NEEDED:
            continue
        if kind is None or isinstance(kind, type):
            raise TypeError(f"{name} must be a tensor, got {(kind or type(None)).__name__}")
        if not kind[1].is_floating_point:
            raise TypeError(f"{name} must be floating point, got {kind[1]}")
        if device is not None and kind[2] != device:
            raise ValueError(f"{name} is on {kind[2]}, but k is on {device}; all tensors must share one device")
        shapes[name] = tuple(kind[0])
    _check_shapes(shapes)


def _check_shapes(shapes):
    q, k, v = shapes["q"], shapes["k"], shapes["v"]
    for name, x, dims in (("q", q, (4,)), ("k", k, (4, 5)), ("v", v, (len(k),))):
        if len(x) not in dims:
            more = " or 5 dimensions [batch, tokens, writes, heads, width]" if len(dims) > 1 or dims == (5,) else ""
            expected = f"4 dimensions [batch, tokens, heads, width]{more}"
            raise ValueError(f"{name} must have {expected}, got shape {list(x)}; k and v have equally many")
    *leading, heads, key_width = k
    batch, tokens, value_width = k[0], k[1], v[-1]
    if 0 in (batch, *leading[2:], heads, key_width, value_width):
        given = f"k {list(k)} and v {list(v)}"
        raise ValueError(f"batch, writes, heads and widths must be at least 1 (tokens may be 0), got {given}")
    expected = {
        "v": [(*leading, heads, value_width)],
        "beta": [(*leading, heads)],
        "g": [(batch, tokens, heads), (batch, tokens, heads, key_width)],
        "initial_state": [(batch, heads, key_width, value_width)],
    }
    for name, valid in expected.items():
        if name in shapes and shapes[name] not in valid:
            wanted, got = " or ".join(str(list(s)) for s in valid), list(shapes[name])
            raise ValueError(f"{name} must have shape {wanted} to go with k {list(k)}, got {got}")
    if q[:2] != (batch, tokens) or q[3] != key_width or q[2] % heads or not q[2]:
        wanted = f"[{batch}, {tokens}, a multiple of {heads}, {key_width}]"
        raise ValueError(f"q must have shape {wanted} to go with k {list(k)}, got {list(q)}")


def check_scale(scale):
    """Raise TypeError unless scale is a number, or a tensor of one that needs no gradient."""
    if isinstance(scale, torch.Tensor) and scale.requires_grad:
        raise TypeError("scale is a number that gets no gradient; multiply q by a factor that is learned")
    if not hasattr(scale, "__float__") or isinstance(scale, torch.Tensor) and scale.numel() != 1:
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")


def check_values(beta, g, most):
    """Raise ValueError for a beta outside [0, most] or a g above 0; reads every value. For debugging."""
    for name, x, low, high in (("beta", beta, 0.0, most), ("g", g, -math.inf, 0.0)):
        if x is not None and x.numel() and not bool(((x >= low) & (x <= high)).all()):
            worst = f"{float(x.min()):.6g} to {float(x.max()):.6g}"
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {worst}")


def check_cu_seqlens(cu_seqlens, k, v, initial_state):
    """cu_seqlens as a list; raise TypeError or ValueError unless it cuts k [1, T, ...] into sequences of one token or
    more, and initial_state, where there is one, is a tensor of a state for each."""
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
    if initial_state is None:
        return cuts
    if not isinstance(initial_state, torch.Tensor):
        raise TypeError(f"initial_state must be a tensor, got {type(initial_state).__name__}")
    if initial_state.shape[:1] != (count,):
        given = initial_state.shape[0] if initial_state.dim() else "none"
        raise ValueError(f"initial_state must have one state per sequence, {count}, got {given}")
    wanted, got = [count, *k.shape[-2:], v.shape[-1]], list(initial_state.shape)
    if got != wanted:
        raise ValueError(f"initial_state must have shape {wanted} to go with k {list(k.shape)}, got {got}")
    return cuts


def check_chunk_size(chunk_size):
    """Raise ValueError unless chunk_size is None or a power of two."""
    if chunk_size is None:
        return
    if not isinstance(chunk_size, int) or chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size must be None or a power of two such as 32, got {chunk_size!r}")
