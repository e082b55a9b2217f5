"""Operators and gates of the original TPTT (arXiv 2506.17671) that no table of this project measures.

They are here so that a configuration of the original can be computed, compared and converted: write gates without
parameters (``delta_rule_v``, ``delta_rule_kv``, ``write_gate="k"``), second writes made by a rotation
(``delta_product_r``, ``delta_product_c``), an activation of the state (``delta_rule_gelu``), the cross gate. Nothing
that is on by default needs them.

Legend: B batch, T tokens, M remembered tokens, N virtual tokens of each, H heads, Hk key/value heads, D head width,
K feature width, V value width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .history import derivative

OPERATORS: dict[str, dict[str, Any]] = {
    "delta_rule_v": {"write_gate": "v"},
    "delta_rule_kv": {"write_gate": "kv"},
    "delta_rule_gelu": {"activation": True},
    "delta_product_r": {"virtual": "rotary"},
    "delta_product_c": {"virtual": "both"},
}
"""What each operator sets in `linear_memory.Recurrence`."""

# ---- write gates without parameters -------------------------------------------------------------------------------

AVERAGES = ("k", "v", "kv")
"""Write gates: the sigmoid of the average of keys, values or their product over a few tokens."""
AVERAGED = 3
"""Tokens that they average over, the token itself included."""


def average(x: torch.Tensor, count: int) -> torch.Tensor:
    """[B, M + L, ...] -> [B, L, ...]: the mean over AVERAGED tokens, zeros before the start; M = ``count``."""
    length = x.shape[1] - count
    return sum(x[:, count - i : count - i + length] for i in range(AVERAGED)) / AVERAGED  # type: ignore[return-value]


def averaged_beta(raw: Sequence[torch.Tensor], count: int, source: str) -> torch.Tensor:
    """Keys [B, M + L, Hk, D] and values [B, M + L, Hk, V] -> beta [B, L, Hk]: the sigmoid of the averaged keys ("k"),
    values ("v") or their product ("kv"), the mean over a head's channels."""
    k, v = raw
    x = k * v if source == "kv" else {"k": k, "v": v}[source]
    return torch.sigmoid(average(x.mean(-1), count))


# ---- second writes ------------------------------------------------------------------------------------------------


def rotary(x: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """[B, M + L, ..., D] -> [B, L, N, ..., D]: consecutive pairs turned by pi m / N; of an odd D the last channel
    stays."""
    whole = x.shape[-1] // 2 * 2
    even, odd, last = x[:, count:, ..., 0:whole:2], x[:, count:, ..., 1:whole:2], x[:, count:, ..., whole:]
    turned = []
    for m in range(steps):
        cos, sin = math.cos(math.pi * m / steps), math.sin(math.pi * m / steps)
        pairs = torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)
        turned.append(torch.cat([pairs, last], -1))
    return torch.stack(turned, 2)


def both(x: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """The mean of `derivative` and `rotary`."""
    return (derivative(x, count, steps) + rotary(x, count, steps)) / 2


# ---- activation of the state --------------------------------------------------------------------------------------


def activated(state: torch.Tensor) -> torch.Tensor:
    """sign(S) GELU(|S|): a GELU of the state itself would forget what is stored with a minus."""
    return state.sign() * F.gelu(state.abs())


def run_activated(
    operator: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    q: torch.Tensor,
    tensors: Sequence[torch.Tensor | None],
    real: torch.Tensor | None,
    seen: torch.Tensor,
    every: int,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``operator`` on q [B, T, H, K] and ``tensors`` (k, v, beta, g), whose state goes through `activated` after each
    ``every`` real tokens of a sequence, of which ``seen`` [B] came before.

    Rows need not be activated at the same tokens. Each piece holds, for every row, the real tokens between two of its
    activations, so that the shapes do not depend on the data: nothing waits for the device.

    Returns:
        o [B, T, H, V], zero at padding (where ``real`` [B, T] is False), and the state [B, H, K, V].
    """
    batch, tokens = q.shape[:2]
    if real is None:
        real = torch.ones(batch, tokens, dtype=torch.bool, device=q.device)
    order = real.int().argsort(dim=1, descending=True, stable=True)  # real tokens first
    count, offset, width = real.sum(1), seen % every, min(every, tokens)
    ranks = torch.arange(width, device=q.device)
    out = None
    for piece in range(-(-(tokens + every - 1) // every)):
        first, end = (piece * every - offset).clamp_min(0), (piece + 1) * every - offset
        inside = first[:, None] + ranks < torch.minimum(end, count)[:, None]
        index = order.gather(1, (first[:, None] + ranks).clamp_max(tokens - 1))
        k, v, beta, g = (None if x is None else _taken(x, index) for x in tensors)
        beta, g = _where(inside, beta), None if g is None else _where(inside, g)
        o, state = operator(_taken(q, index), k, v, beta, g, initial_state=state, output_final_state=True)
        out = o.new_zeros(batch, tokens, *o.shape[2:]) if out is None else out
        out = out.scatter_add(1, _like(index, o).expand_as(o), _where(inside, o))
        state = torch.where((count >= end)[:, None, None, None], activated(state), state)
    assert out is not None
    return out, state


def _like(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return index.view(*index.shape, *[1] * (x.dim() - 2))


def _taken(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The tokens ``index`` [B, n] of x [B, T, ...]."""
    return x.gather(1, _like(index, x).expand(*index.shape, *x.shape[2:]))


def _where(inside: torch.Tensor, x: Any) -> Any:
    """x [B, n, ...], zero where ``inside`` [B, n] is False."""
    return torch.where(_like(inside, x), x, 0.0)


# ---- cross gate ---------------------------------------------------------------------------------------------------


def cross_product(
    project: Callable[[torch.Tensor], torch.Tensor], softmax_share: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """``output`` with the product of both branches on top, [B, T, hidden].

    ``project`` is the output projection W x + c, and ``output`` what it gave for both branches together: with
    a = W (1 - mu) softmax, of ``softmax_share`` [B, T, H * V], and b = W mu memory it is a + b + c, and a b is added.
    """
    bias = project(torch.zeros_like(softmax_share[:1, :1]))
    with_bias = project(softmax_share)
    return output + (with_bias - bias) * (output - with_bias)
