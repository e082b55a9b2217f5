"""Forward of one segment: n consecutive chunks, carried from one state to the next.

The form without W (derivation in README.md). X stacks the rows beta k and, per query group, scale * q. ~ is "times the
decay since the chunk's start", ^ "times the decay until the chunk's end", D the decay between two positions of a chunk:
    [A; P] = D . (X k^T)      T = (I + A)^-1      u = T (beta v - X~_k S)      o = X~_q S + P u      S' = gamma S + k^^T u
Without the delta rule X has no rows of keys, and u = beta v.
Legend: N = n * B * H chunks, chunk-major; W positions and R rows of a chunk (see plan.py).
"""

from dataclasses import dataclass

import torch

from .channels import decay_channels
from .decays import Decays
from .dtypes import wide_dtype
from .plan import Plan


@dataclass(frozen=True)
class Segment:
    """What does not depend on the state. Without decay the decayed fields are the plain ones."""

    plan: Plan
    keys: torch.Tensor  # [N, W, K]
    values: torch.Tensor  # [N, W, V]
    beta: torch.Tensor | None  # [N, W, 1]
    rows: torch.Tensor  # [N, R, K]: X
    log_decay: torch.Tensor | None  # [N, W], or [N, W, K] per channel
    decays: Decays | None  # of a scalar decay
    rows_decayed: torch.Tensor  # [N, R, K]: X~
    keys_decayed: torch.Tensor  # [N, W, K]: k^
    carried: torch.Tensor | None  # [N, 1 or K, 1]: gamma
    mixing: torch.Tensor  # [N, R, W]: [A; P]
    inverse: torch.Tensor | None  # [N, W, W]: T


def prepare(plan, keys, values, beta, rows, log_decay):
    """The Segment of these tensors. Args: as its fields; the rows of keys are filled in here."""
    if plan.delta:
        torch.mul(keys, beta, out=rows[:, : plan.keys])
    rows_decayed, keys_decayed, decays, carried = rows, keys, None, None
    if log_decay is not None and log_decay.dim() == 3:
        rows_decayed, keys_decayed, mixing, carried = decay_channels(plan, rows, keys, log_decay)
    else:
        if log_decay is not None:
            decays = Decays.from_logs(log_decay)
            rows_decayed = plan.times_(rows.clone(), decays.since_start)
            keys_decayed, carried = keys * decays.until_end, decays.carried
        mixing = mask_(plan, _products(plan, keys, beta, rows), decays)
    inverse = _inverse(mixing[:, : plan.keys]) if plan.delta else None
    return Segment(
        plan, keys, values, beta, rows, log_decay, decays, rows_decayed, keys_decayed, carried, mixing, inverse
    )


def _inverse(lower):
    """(I + A)^-1 by substitution. Neumann doubling, (I - A)(I + A^2)..., has powers of 1e16 that cancel when keys are
    alike."""
    eye = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)


def _products(plan, keys, beta, rows):
    """X k^T [N, R, W]. Keys times keys in double: with alike keys and beta near 2 nothing is ever forgotten, and the
    rounding of k . k, the same at every step, would grow with T (from 1e-5 to 1e-4 after 500 tokens)."""
    products = keys.new_empty(len(keys), plan.rows, plan.positions)
    if plan.delta:
        wide = keys.to(wide_dtype(keys.device))
        torch.mul(torch.bmm(wide, wide.transpose(1, 2)), beta, out=products[:, : plan.keys])
    torch.bmm(rows[:, plan.keys :], keys.transpose(1, 2), out=products[:, plan.keys :])
    return products


def mask_(plan, mixing, decays):
    """Multiply [N, R, W] by D in place (the causal mask without decay). A position's own write is cleared as well from
    the rows of keys."""
    size = plan.positions
    lower = mixing.new_ones(1, size, size).tril_() if decays is None else decays.between
    plan.times_(mixing, lower)
    mixing[:, : plan.keys].diagonal(0, 1, 2).zero_()
    return mixing


def scan(segment, state):
    """Carry `state` [B*H, K, V] through the segment.

    Returns: states [n + 1, B*H, K, V] before each chunk and after the last, u [N, W, V] and o [N, G * C, V].
    """
    keys = segment.plan.keys
    states, updates, read = _scan(segment, state, segment.rows_decayed)
    return states, updates, torch.baddbmm(read[:, keys:], segment.mixing[:, keys:], updates)


def scan_states(segment, state):
    """`scan` without the output: states and u only."""
    return _scan(segment, state, segment.rows_decayed[:, : segment.plan.keys])[:2]


def _scan(segment, state, rows):
    """States, u, and what `rows` [N, R or fewer, K] (X~, or its first rows) read from the state before their chunk."""
    heads, size, chunks = len(state), segment.plan.keys, len(segment.keys) // len(state)
    writes = segment.values if segment.beta is None else segment.values * segment.beta
    reads = state.new_empty(*rows.shape[:2], state.shape[2])
    updates = torch.empty_like(writes) if size else writes
    states = state.new_empty(chunks + 1, *state.shape)
    states[0] = state
    keys = segment.keys_decayed.transpose(1, 2)
    for i in range(chunks):
        now = slice(i * heads, (i + 1) * heads)
        if rows.shape[1]:
            torch.bmm(rows[now], states[i], out=reads[now])
        if size:
            writes[now].sub_(reads[now, :size])
            torch.bmm(segment.inverse[now], writes[now], out=updates[now])
        carry(states[i], segment.carried, now, keys, updates, out=states[i + 1])
    return states, updates, reads


def carry(state, carried, now, left, right, out):
    """out = gamma * state + left right, for the chunks `now`; without decay (carried None) gamma is 1."""
    if carried is None:
        torch.baddbmm(state, left[now], right[now], out=out)
    else:
        torch.mul(state, carried[now], out=out).baddbmm_(left[now], right[now])
