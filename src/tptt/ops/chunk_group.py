"""Forward of one chunk group: n consecutive chunks, with the state carried from each to the next.

The derivation is in README.md. Keys k and queries q read; b = beta k writes. ~ means "times the decay since the start
of the chunk", ^ "times the decay until the end of the chunk", and D is the decay between two positions of a chunk:
    A, P = D . (k b^T), D . (q b^T)     w = (I + A)^-1 (v - k~ S)     o = scale (q~ S + P w)     S' = gamma S + b^^T w
Without the delta rule w = v.
Legend: M = n * B * H chunks, chunk-major; W positions of a chunk, G * C rows of queries (see chunk_shape.py).
"""

from dataclasses import dataclass

import torch

from .channels import decay_channels
from .chunk_shape import ChunkShape
from .decays import Decays
from .dtypes import wide_dtype

STATES_BYTES = 1 << 20
"""Bytes that the states of the chunks of a group may take together: more would leave the caches before they are read
again."""


@dataclass(frozen=True)
class ChunkGroup:
    """Everything that does not depend on the state. Without decay the decayed fields are the undecayed ones. Fields
    that only the delta rule needs are None without it."""

    shape: ChunkShape
    keys: torch.Tensor  # [M, W, K]: k
    queries: torch.Tensor  # [M, G * C, K]: q
    values: torch.Tensor  # [M, W, V]: v, until the scan
    beta: torch.Tensor | None  # [M, W, 1]
    log_decay: torch.Tensor | None  # [M, W], or [M, W, K] per channel
    decays: Decays | None  # of a scalar decay
    keys_decayed: torch.Tensor | None  # [M, W, K]: k~
    queries_decayed: torch.Tensor  # [M, G * C, K]: q~
    writers_decayed: torch.Tensor  # [M, W, K]: b^
    carried: torch.Tensor | None  # [M, 1 or K, 1]: gamma
    of_keys: torch.Tensor | None  # [M, W, W]: A below its diagonal, anything on it
    of_queries: torch.Tensor  # [M, G * C, W]: P
    inverse: torch.Tensor | None  # [M, W, W]: (I + A)^-1


def prepare(shape, queries, keys, values, beta, log_decay, overwrite=False):
    """The ChunkGroup of these tensors.

    Args: as its fields; overwrite: there is no backward, so that q and k may be overwritten by q~ and b^, and A stays
    without D.
    """
    readers, decays = keys if shape.delta else None, None
    multiply = torch.Tensor.mul_ if overwrite else torch.mul
    if log_decay is not None and log_decay.dim() == 3:
        decayed = decay_channels(shape, readers, queries, times(keys, beta), log_decay)
        inverse = _inverse(decayed.of_keys) if shape.delta else None
    else:
        of_keys = _overlaps(keys, beta).mul_(across(beta)) if shape.delta else None
        of_queries = torch.bmm(queries, keys.transpose(1, 2))
        if beta is not None:
            of_queries.mul_(across(beta))
        decays = None if log_decay is None else Decays.from_logs(log_decay)
        inverse = _decayed_inverse(of_keys, decays) if shape.delta else None
        mask_(shape, None if overwrite else of_keys, of_queries, decays)
        if decays is None:
            decayed = (readers, queries, times(keys, beta), None, of_keys, of_queries)
        else:
            since, until = decays.since_start, times(decays.until_end, beta)
            readers = keys * since if shape.delta else None
            asking, writers = multiply(queries, shape.at_queries(since)), multiply(keys, until)
            decayed = (readers, asking, writers, decays.carried, of_keys, of_queries)
    return ChunkGroup(shape, keys, queries, values, beta, log_decay, decays, *decayed, inverse)


def times(x, factor):
    """x * factor, x itself without one (None)."""
    return x if factor is None else x * factor


def _inverse(lower):
    """(I + A)^-1 by substitution: the powers of A in a Neumann series, (I - A)(I + A^2)..., grow huge and cancel when
    keys are alike. It solves Y (I + A)^T = I and transposes Y, whose rows are then contiguous."""
    eye = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower.mT, eye, upper=True, left=False, unitriangular=True).mT


def _decayed_inverse(lower, decays):
    """(I + D . L)^-1 for L = k b^T [M, W, W].

    Since D_ij = D_i0 / D_j0 it is also D . (I + L)^-1. In this form no small numbers are multiplied with each other;
    their subnormal products would be slow. It is bounded where the diagonal of L, beta |k|^2, is at most 2.
    """
    if decays is None:
        return _inverse(lower)
    if lower.device.type == "cpu" and lower.diagonal(0, 1, 2).amax() <= 2.1:
        return _inverse(lower).mul_(decays.between)
    return _inverse(lower * decays.between)


def _overlaps(keys, beta):
    """k k^T [M, W, W], summed in float64 where its rounding matters. With identical keys and beta near 2 nothing is
    ever forgotten, and the rounding of k.k, the same at every step, adds up over the sequence
    (tests/ops/test_invariants.py, `test_ill_conditioned`). On a CPU float64 is slow, and is used only where a beta is
    above 1."""
    if keys.device.type == "cpu" and beta.amax() <= 1:
        return torch.bmm(keys, keys.transpose(1, 2))
    wide = keys.to(wide_dtype(keys.device))
    return torch.bmm(wide, wide.transpose(1, 2)).to(keys.dtype)


def mask_(shape, of_keys, of_queries, decays):
    """Multiply [M, W, W] (or None) and [M, G * C, W] by D, the causal mask without decay, in place."""
    size = shape.positions
    lower = of_queries.new_ones(1, size, size).tril_() if decays is None else decays.between
    if of_keys is not None:
        of_keys.mul_(lower)
    of_queries.mul_(shape.at_queries(lower))


def in_cache(chunks, state):
    """Whether `chunks` states together stay in the caches. On an accelerator the number of launches counts instead:
    always."""
    return state.device.type != "cpu" or chunks * state.nbytes <= STATES_BYTES


def run(group, state, scale):
    """o [M, G * C, V]. Carries `state` [B*H, K, V] through the group in place; the values of the group are
    overwritten."""
    chunks = len(group.values) // len(state)
    out = group.values.new_empty(*group.queries.shape[:2], group.values.shape[2])
    update = torch.empty_like(group.values[: len(state)])
    _carry(group, [state] * (chunks + 1), [update] * chunks, out.unflatten(0, (chunks, -1)).unbind(), scale)
    return out


def scan(group, state):
    """Carry `state` [B*H, K, V] through the group, and keep what the backward needs; the values of the group are
    overwritten.

    Returns: states [n + 1, B*H, K, V] before each chunk and after the last, and w [M, W, V].
    """
    updates = torch.empty_like(group.values) if group.shape.delta else group.values
    chunks = len(updates) // len(state)
    states = state.new_empty(chunks + 1, *state.shape)
    states[0] = state
    _carry(group, states.unbind(), *by_chunk(chunks, updates))
    return states, updates


def read(group, states, updates, scale):
    """o [M, G * C, V], from what `scan` returns."""
    out = torch.bmm(group.queries_decayed, states[:-1].flatten(0, 1))
    return out.baddbmm_(group.of_queries, updates, beta=scale, alpha=scale)


def _carry(group, states, updates, out=None, scale=1.0):
    """Fill all states but the first, the updates w, and o unless it is None: lists of one tensor per chunk, perhaps the
    same one."""
    delta = group.shape.delta
    keys, queries, writers, inverse, gamma, of_queries, rest = by_chunk(
        len(updates),
        group.keys_decayed,
        group.queries_decayed,
        group.writers_decayed.transpose(1, 2),
        group.inverse,
        group.carried,
        group.of_queries,
        group.values,
    )
    for i, before in enumerate(states[:-1]):
        found = rest[i]
        if delta:
            found = torch.bmm(inverse[i], rest[i].baddbmm_(keys[i], before, alpha=-1), out=updates[i])
        if out is not None:
            torch.bmm(queries[i], before, out=out[i]).baddbmm_(of_queries[i], found, beta=scale, alpha=scale)
        decay(before, gamma[i], states[i + 1]).baddbmm_(writers[i], found)


def across(beta):
    """[M, W, 1] -> [M, 1, W]: from a factor of each reader to one of each writer; None stays None."""
    return None if beta is None else beta.transpose(1, 2)


def by_chunk(chunks, *tensors):
    """Tensors [M, ...] cut into lists of [B*H, ...], one per chunk; lists of None for None."""
    return [[None] * chunks if x is None else x.unflatten(0, (chunks, -1)).unbind() for x in tensors]


def decay(state, gamma, out):
    """out = gamma state; without decay (None) gamma is 1. `out` may be `state` itself."""
    return out.copy_(state) if gamma is None else torch.mul(state, gamma, out=out)
