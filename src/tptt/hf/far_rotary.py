"""How a base's queries see keys far back: its rotary embedding, averaged over the distances that the window leaves out.

The memory reads queries and keys before positions are put in, and a base's heads look up what they look up with
positions in: what they have learned to ignore far back is all there without them. The score of a key at distance d is
q^T R(d) k (RoFormer, arXiv 2104.09864); its mean over d is q^T C k, which needs no positions. C keeps the slow pairs of
channels, turned by their mean angle, and takes the fast ones out.

Legend: B batch, T tokens, H query heads, Hk key/value heads, D head width, R channels that turn.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .compat import ROTARY
from .slots import patched_attention

_RIDGE = 1e-4  # of the mean variance, on every channel: few tokens do not vary in all of them
_SAME = 0.95  # cosine from which what is turned counts as the projection's own output


@dataclass
class Turn:
    """One call of the rotary embedding by an attention module."""

    function: Callable[..., Any]
    q: torch.Tensor  # as it went in, [B, H, T, R] or [B, T, H, R]
    k: torch.Tensor
    cos: torch.Tensor  # [B, T, R]
    sin: torch.Tensor
    axis: int  # of the heads

    def mean(self, near: int, far: int) -> torch.Tensor:
        """C [R, R], the mean over distances from ``near`` to before ``far``; R(d) x is what the base makes of x at
        d."""
        cos, sin = self.cos[0, :2].double(), self.sin[0, :2].double()
        angle = torch.atan2(sin[1] * cos[0] - cos[1] * sin[0], cos[1] * cos[0] + sin[1] * sin[0])  # of one token
        angles = torch.arange(near, far, device=angle.device).double()[:, None] * angle
        size = self.q.shape[-1]
        unit = torch.eye(size, device=self.q.device)[None].unsqueeze(self.axis)
        cos, sin = (x.mean(0).float().expand(1, size, -1) for x in (angles.cos(), angles.sin()))
        turned = self.function(unit, unit, cos, sin, unsqueeze_dim=self.axis)[0]
        return turned.squeeze(self.axis)[0].T  # column i is what becomes of unit vector i


@contextmanager
def rotary_turns(model: nn.Module) -> Iterator[dict[nn.Module, Turn]]:
    """Within, the last call of the rotary embedding by each attention module of ``model`` that carries a memory.

    Modules that turn nothing, or in a way of their own, are not among them.
    """
    found: dict[nn.Module, Turn] = {}
    running: list[nn.Module] = []
    modules = patched_attention(model)
    places = {sys.modules[type(m).__module__] for m in modules}
    originals = [(p, f) for p in places if (f := getattr(p, ROTARY, None)) is not None and _turns_both(f)]

    def recording(function):
        def call(*args, **kwargs):
            if running and len(args) == 4 and args[2].ndim == 3 and args[2].shape[1] > 1:
                found[running[-1]] = Turn(function, *args, axis=kwargs.get("unsqueeze_dim", 1))
            return function(*args, **kwargs)

        return call

    handles = [m.register_forward_pre_hook(lambda m, args: running.append(m)) for m in modules]
    handles += [m.register_forward_hook(lambda m, args, out: running.clear()) for m in modules]
    try:
        for place, function in originals:
            setattr(place, ROTARY, recording(function))
        yield found
    finally:
        for place, function in originals:
            setattr(place, ROTARY, function)
        for handle in handles:
            handle.remove()


def _turns_both(function: Callable[..., Any]) -> bool:
    """Whether the rotary embedding ``function`` takes queries and keys together."""
    return list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]


def far_maps(
    turn: Turn | None, q: torch.Tensor, k: torch.Tensor, near: int, far: int, states: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps [H, D, D] and [``states``, D, D] of a layer's projections q [B, T, H, D] and k [B, T, Hk, D] to queries and
    keys whose product is the base's mean score at distances from ``near`` to before ``far``.

    Between projection and rotary embedding a norm may scale channels (Qwen3, OLMo-2): its scale is in the maps. Where
    no rotary embedding was seen, or it turns other channels, the product is that of q and k. Queries and keys are
    balanced: their channels vary independently and equally much in both, those that vary most come first.
    """
    size, (heads, kv_heads) = q.shape[-1], (q.shape[2], k.shape[2])
    to_q, to_k = (torch.eye(size, dtype=torch.float64).repeat(n, 1, 1) for n in (heads, kv_heads))
    if turn is not None:
        of_q, of_k = (_scale(x, y if turn.axis == 2 else y.transpose(1, 2)) for x, y in ((q, turn.q), (k, turn.k)))
        if of_q is not None and of_k is not None:
            width = turn.q.shape[-1]  # where only a part of a head turns, it is the first one
            to_q[:, :width, :width] = turn.mean(near, far).double().cpu()
            to_q, to_k = to_q * of_q.double().cpu()[:, None, :], to_k * of_k.double().cpu()[:, None, :]
    to_k = to_k.repeat_interleave(states // kv_heads, 0)
    varied_q, varied_k = _covariance(q), _covariance(k).repeat_interleave(states // kv_heads, 0)
    varied_q = (to_q @ varied_q @ to_q.mT).unflatten(0, (states, -1)).mean(1)  # of the queries that read a state
    balanced_q, balanced_k = _balanced(varied_q, to_k @ varied_k @ to_k.mT)
    return balanced_q.repeat_interleave(heads // states, 0) @ to_q, balanced_k @ to_k


def _covariance(x: torch.Tensor) -> torch.Tensor:
    """[heads, D, D] of x [B, T, heads, D], in float64."""
    x = x.float().flatten(0, 1).transpose(0, 1)
    x = x - x.mean(1, keepdim=True)
    return (x.mT @ x / x.shape[1]).double().cpu()


def _balanced(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A and A^-T [n, D, D] that make the covariances ``q`` and ``k`` [n, D, D] one diagonal, largest first (balanced
    truncation: B. C. Moore, 1981, doi 10.1109/TAC.1981.1102568)."""
    unit = torch.eye(q.shape[-1], dtype=q.dtype)
    q, k = (x + (_RIDGE * x.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + 1e-12) * unit for x in (q, k))
    lower = torch.linalg.cholesky(k)
    squares, turn = torch.linalg.eigh(lower.mT @ q @ lower)
    a = squares.clamp_min(1e-30).pow(-0.25)[..., None] * (turn.mT @ lower.mT)
    return a.flip(1), torch.linalg.inv(a).mT.flip(1)


def _scale(raw: torch.Tensor, turned: torch.Tensor) -> torch.Tensor | None:
    """[heads, D] by which each channel of ``raw`` [B, T, heads, D] was scaled before it was turned, those that are not
    turned as much as the others on average; None: what was turned is something else."""
    width = turned.shape[-1]
    if turned.shape[:-1] != raw.shape[:-1] or width > raw.shape[-1]:
        return None
    part, turned = raw[..., :width].float(), turned.float()
    ratio = turned.pow(2).mean((0, 1)).sqrt() / part.pow(2).mean((0, 1)).sqrt().clamp_min(1e-12)
    if torch.cosine_similarity(part * ratio, turned, dim=-1).mean() < _SAME:
        return None
    rest = ratio.mean(-1, keepdim=True).expand(-1, raw.shape[-1] - width)
    return torch.cat([ratio, rest], -1)
