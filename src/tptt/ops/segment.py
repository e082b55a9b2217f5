"""Forward of one segment: n consecutive chunks, carried from one state to the next.

The form without W (derivation in README.md). X stacks the rows beta k and, per query group, scale * q. ~ is "times the
decay since the chunk's start", ^ "times the decay until the chunk's end", D the decay between two tokens of a chunk:
    [A; P] = D . (X k^T)      T = (I + A)^-1      u = T (beta v - X~_k S)      o = X~_q S + P u      S' = gamma S + k^^T u
Legend: N = n * B * H chunks, chunk-major; C tokens per chunk; G query groups; R = (1 + G) * C rows of X.
"""

from dataclasses import dataclass

import torch

from .decays import Decays
from .dtypes import wide_dtype


@dataclass(frozen=True)
class Segment:
    """What does not depend on the state. Without decay `decays` is None and the decayed fields are the plain ones."""

    keys: torch.Tensor  # [N, C, K]
    values: torch.Tensor  # [N, C, V]
    beta: torch.Tensor  # [N, C, 1]
    rows: torch.Tensor  # [N, R, K]: X
    decays: Decays | None
    rows_decayed: torch.Tensor  # [N, R, K]: X~
    keys_decayed: torch.Tensor  # [N, C, K]: k^
    mixing: torch.Tensor  # [N, R, C]: [A; P]
    inverse: torch.Tensor  # [N, C, C]: T


def prepare(keys, values, beta, rows, log_decay):
    """The Segment of these tensors.

    Args: as the fields of Segment; log_decay [N, C] or None; rows with scale * q from row C on (the first C rows are
    filled in here).
    """
    size = keys.shape[1]
    torch.mul(keys, beta, out=rows[:, :size])
    rows_decayed, keys_decayed, decays = rows, keys, None
    if log_decay is not None:
        decays = Decays.from_logs(log_decay)
        rows_decayed = (rows.unflatten(1, (-1, size)) * decays.since_start.unsqueeze(1)).flatten(1, 2)
        keys_decayed = keys * decays.until_end
    mixing = mask_(_products(keys, beta, rows), decays)
    # By substitution. Neumann doubling, (I - A)(I + A^2)..., has powers of 1e16 that cancel when keys are alike.
    eye = torch.eye(size, dtype=keys.dtype, device=keys.device)
    inverse = torch.linalg.solve_triangular(mixing[:, :size], eye, upper=False, unitriangular=True)
    return Segment(keys, values, beta, rows, decays, rows_decayed, keys_decayed, mixing, inverse)


def _products(keys, beta, rows):
    """X k^T [N, R, C]. Keys times keys in double: with alike keys and beta near 2 nothing is ever forgotten, and the
    rounding of k . k, the same at every step, would grow with T (from 1e-5 to 1e-4 after 500 tokens)."""
    size = keys.shape[1]
    wide = keys.to(wide_dtype(keys.device))
    products = keys.new_empty(len(keys), rows.shape[1], size)
    torch.mul(torch.bmm(wide, wide.transpose(1, 2)), beta, out=products[:, :size])
    torch.bmm(rows[:, size:], keys.transpose(1, 2), out=products[:, size:])
    return products


def mask_(mixing, decays):
    """Multiply [N, R, C] by D in place (the causal mask without decay). A token's own write, the diagonal of the first
    C rows, is cleared as well."""
    size = mixing.shape[2]
    grouped = mixing.unflatten(1, (-1, size))
    grouped.mul_(mixing.new_ones(size, size).tril_() if decays is None else decays.between.unsqueeze(1))
    grouped[:, 0].diagonal(0, 1, 2).zero_()
    return mixing


def scan(segment, state):
    """Carry `state` [B*H, K, V] through the segment.

    Returns: states [n + 1, B*H, K, V] before each chunk and after the last, u [N, C, V] and o [N, R - C, V].
    """
    size = segment.keys.shape[1]
    states, updates, read = _scan(segment, state, segment.rows_decayed)
    return states, updates, torch.baddbmm(read[:, size:], segment.mixing[:, size:], updates)


def scan_states(segment, state):
    """`scan` without the output: states and u only."""
    return _scan(segment, state, segment.rows_decayed[:, : segment.keys.shape[1]])[:2]


def _scan(segment, state, rows):
    """States, u, and what `rows` [N, C or R, K] (X~, or its first C rows) read from the state before their chunk."""
    heads, size, chunks = len(state), segment.keys.shape[1], len(segment.keys) // len(state)
    writes = segment.values * segment.beta
    reads = state.new_empty(*rows.shape[:2], state.shape[2])
    updates = torch.empty_like(writes)
    states = state.new_empty(chunks + 1, *state.shape)
    states[0] = state
    keys, carried = segment.keys_decayed.transpose(1, 2), segment.decays and segment.decays.carried
    for i in range(chunks):
        now = slice(i * heads, (i + 1) * heads)
        torch.bmm(rows[now], states[i], out=reads[now])
        writes[now].sub_(reads[now, :size])
        torch.bmm(segment.inverse[now], writes[now], out=updates[now])
        carry(states[i], carried, now, keys, updates, out=states[i + 1])
    return states, updates, reads


def carry(state, carried, now, left, right, out):
    """out = gamma * state + left right, for the chunks `now`; without decay (carried None) gamma is 1."""
    if carried is None:
        torch.baddbmm(state, left[now], right[now], out=out)
    else:
        torch.mul(state, carried[now], out=out).baddbmm_(left[now], right[now])
