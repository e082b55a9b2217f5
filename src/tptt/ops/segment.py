"""Forward of one segment: n consecutive chunks, carried from one state to the next.

The form without W (derivation in README.md). Keys k and queries q read, b = beta k is what is written along. ~ is "times the
decay since the chunk's start", ^ "times the decay until the chunk's end", D the decay between two positions of a chunk:
    A, P = D . (k b^T), D . (q b^T)      w = (I + A)^-1 (v - k~ S)      o = scale (q~ S + P w)      S' = gamma S + b^^T w
Without the delta rule w = v.
Legend: N = n * B * H chunks, chunk-major; W positions of a chunk, G * C rows of queries (see plan.py).
"""

from dataclasses import dataclass

import torch

from .channels import decay_channels
from .decays import Decays
from .dtypes import wide_dtype
from .plan import Plan

STATES_BYTES = 1 << 20
"""What the states of a segment's chunks may take together: more of them leave the caches before they are read again."""


@dataclass(frozen=True)
class Segment:
    """What does not depend on the state. Without decay the decayed fields are the plain ones; what only the delta rule has
    is None without it."""

    plan: Plan
    keys: torch.Tensor  # [N, W, K]: k
    queries: torch.Tensor  # [N, G * C, K]: q
    values: torch.Tensor  # [N, W, V]: v, until the scan
    beta: torch.Tensor | None  # [N, W, 1]
    log_decay: torch.Tensor | None  # [N, W], or [N, W, K] per channel
    decays: Decays | None  # of a scalar decay
    keys_decayed: torch.Tensor | None  # [N, W, K]: k~
    queries_decayed: torch.Tensor  # [N, G * C, K]: q~
    writes_decayed: torch.Tensor  # [N, W, K]: b^
    carried: torch.Tensor | None  # [N, 1 or K, 1]: gamma
    of_keys: torch.Tensor | None  # [N, W, W]: A below its diagonal, anything on it
    of_queries: torch.Tensor  # [N, G * C, W]: P
    inverse: torch.Tensor | None  # [N, W, W]: (I + A)^-1


def prepare(plan, queries, keys, values, beta, log_decay, overwrite=False):
    """The Segment of these tensors. Args: as its fields; overwrite: what only the backward reads again may be something else, q
    and k overwritten by q~ and b^, A without D."""
    readers, decays = keys if plan.delta else None, None
    multiply = torch.Tensor.mul_ if overwrite else torch.mul
    if log_decay is not None and log_decay.dim() == 3:
        decayed = decay_channels(plan, readers, queries, times(keys, beta), log_decay)
        inverse = _inverse(decayed.of_keys) if plan.delta else None
    else:
        of_keys = _overlaps(keys, beta).mul_(across(beta)) if plan.delta else None
        of_queries = torch.bmm(queries, keys.transpose(1, 2))
        if beta is not None:
            of_queries.mul_(across(beta))
        decays = None if log_decay is None else Decays.from_logs(log_decay)
        inverse = _decayed_inverse(of_keys, decays) if plan.delta else None
        mask_(plan, None if overwrite else of_keys, of_queries, decays)
        if decays is None:
            decayed = (readers, queries, times(keys, beta), None, of_keys, of_queries)
        else:
            since, until = decays.since_start, times(decays.until_end, beta)
            readers = keys * since if plan.delta else None
            asking, writes = multiply(queries, plan.of_queries(since)), multiply(keys, until)
            decayed = (readers, asking, writes, decays.carried, of_keys, of_queries)
    return Segment(plan, keys, queries, values, beta, log_decay, decays, *decayed, inverse)


def times(x, factor):
    """x * factor, x itself without one (None)."""
    return x if factor is None else x * factor


def _inverse(lower):
    """(I + A)^-1 by substitution. Neumann doubling, (I - A)(I + A^2)..., has powers of 1e16 that cancel when keys are
    alike. As Y^T of Y (I + A)^T = I, which takes 3/4 of the time of (I + A) X = I and leaves rows contiguous."""
    eye = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower.mT, eye, upper=True, left=False, unitriangular=True).mT


def _decayed_inverse(lower, decays):
    """(I + D . L)^-1 for L = k b^T [N, W, W].

    It is D . (I + L)^-1 as well, since D_ij = D_i0 / D_j0: then no small numbers are multiplied with each other, whose
    subnormal products take four times as long. That is bounded where beta |k|^2, the diagonal, is at most 2.
    """
    if decays is None:
        return _inverse(lower)
    if lower.device.type == "cpu" and lower.diagonal(0, 1, 2).amax() <= 2.1:
        return _inverse(lower).mul_(decays.between)
    return _inverse(lower * decays.between)


def _overlaps(keys, beta):
    """k k^T [N, W, W]. With alike keys and beta near 2 nothing is ever forgotten, and the rounding of k . k, the same at
    every step, would grow with T (from 1e-5 to 1e-4 after 500 tokens): it is summed in double, which on a CPU only happens
    where a beta is above 1."""
    if keys.device.type == "cpu" and beta.amax() <= 1:
        return torch.bmm(keys, keys.transpose(1, 2))
    wide = keys.to(wide_dtype(keys.device))
    return torch.bmm(wide, wide.transpose(1, 2)).to(keys.dtype)


def mask_(plan, of_keys, of_queries, decays):
    """Multiply [N, W, W] (or None) and [N, G * C, W] by D, the causal mask without decay, in place."""
    size = plan.positions
    lower = of_queries.new_ones(1, size, size).tril_() if decays is None else decays.between
    if of_keys is not None:
        of_keys.mul_(lower)
    of_queries.mul_(plan.of_queries(lower))


def in_cache(chunks, state):
    """Whether `chunks` states are as good as one that is carried in place. On an accelerator launches count, not caches."""
    return state.device.type != "cpu" or chunks * state.nbytes <= STATES_BYTES


def run(segment, state, scale):
    """o [N, G * C, V]. Carries `state` [B*H, K, V] through the segment in place; the segment's values are used up."""
    chunks = len(segment.values) // len(state)
    out = segment.values.new_empty(*segment.queries.shape[:2], segment.values.shape[2])
    update = torch.empty_like(segment.values[: len(state)])
    _carry(segment, [state] * (chunks + 1), [update] * chunks, out.unflatten(0, (chunks, -1)).unbind(), scale)
    return out


def scan(segment, state):
    """Carry `state` [B*H, K, V] through the segment, and keep what the backward needs; the segment's values are used up.

    Returns: states [n + 1, B*H, K, V] before each chunk and after the last, and w [N, W, V].
    """
    updates = torch.empty_like(segment.values) if segment.plan.delta else segment.values
    chunks = len(updates) // len(state)
    states = state.new_empty(chunks + 1, *state.shape)
    states[0] = state
    _carry(segment, states.unbind(), *by_chunk(chunks, updates))
    return states, updates


def read(segment, states, updates, scale):
    """o [N, G * C, V], from what `scan` returns."""
    out = torch.bmm(segment.queries_decayed, states[:-1].flatten(0, 1))
    return out.baddbmm_(segment.of_queries, updates, beta=scale, alpha=scale)


def _carry(segment, states, updates, out=None, scale=1.0):
    """Fill the states behind the first, w and o (or not: None), lists of one tensor per chunk, which may be the same one."""
    delta = segment.plan.delta
    keys, queries, writes, inverse, gamma, of_queries, rest = by_chunk(
        len(updates),
        segment.keys_decayed,
        segment.queries_decayed,
        segment.writes_decayed.transpose(1, 2),
        segment.inverse,
        segment.carried,
        segment.of_queries,
        segment.values,
    )
    for i, before in enumerate(states[:-1]):
        found = rest[i]
        if delta:
            found = torch.bmm(inverse[i], rest[i].baddbmm_(keys[i], before, alpha=-1), out=updates[i])
        if out is not None:
            torch.bmm(queries[i], before, out=out[i]).baddbmm_(of_queries[i], found, beta=scale, alpha=scale)
        decay(before, gamma[i], states[i + 1]).baddbmm_(writes[i], found)


def across(beta):
    """[N, W, 1] -> [N, 1, W]: of the writers beside the readers; None stays."""
    return None if beta is None else beta.transpose(1, 2)


def by_chunk(chunks, *tensors):
    """Tensors [N, ...] cut into lists of [B*H, ...], one per chunk; lists of None for None."""
    return [[None] * chunks if x is None else x.unflatten(0, (chunks, -1)).unbind() for x in tensors]


def decay(state, gamma, out):
    """out = gamma state; without decay (None) gamma is 1. `out` may be `state` itself."""
    return out.copy_(state) if gamma is None else torch.mul(state, gamma, out=out)
