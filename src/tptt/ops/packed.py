"""Packed sequences: rows of several sequences, cut apart into batches of rows of like length.

A row is padded to at most twice its length with tokens that write nothing, so that sequences run side by side instead
of one after the other.
"""

import itertools

import torch

from .dtypes import state_dtype


def run_packed(run, q, k, v, beta, g, cuts, initial_state, output_final_state):
    """`run(q, k, v, beta, g, initial_state) -> (o, state)` on every sequence of a packed row.

    Args: tensors [1, T, ...]; cuts, where each of the S sequences begins, and T; initial_state
    [S, H, K, V] or None. Arguments are taken as valid.
    Returns: o [1, T, G*H, V], state [S, H, K, V], or None unless output_final_state.
    """
    places, outputs, order, states = [], [], [], []
    for members in _buckets(cuts):
        at, real = _places(cuts, members, k.device)
        tensors = [None if x is None else _cut(x, at) for x in (q, k, v, beta, g)]
        for i in (1 if beta is None else 3, 4):  # without a key or a beta nothing is written
            if tensors[i] is not None:  # filled, not multiplied: a decay may be minus infinity
                tensors[i] = tensors[i].masked_fill(~_like(real, tensors[i]), 0.0)
        o, state = run(*tensors, None if initial_state is None else initial_state[members])
        places.append(at[real])
        outputs.append(o[real])
        order += members
        states.append(state)
    back = torch.argsort(torch.cat(places))
    o = torch.cat(outputs)[back].unsqueeze(0)
    if not output_final_state:
        return o, None
    inverse = torch.argsort(torch.tensor(order, device=k.device))
    return o, torch.cat(states).to(state_dtype(q, k, v))[inverse]


def _buckets(cuts):
    """Lists of sequences whose lengths share a power of two."""
    lengths = [b - a for a, b in itertools.pairwise(cuts)]
    ranked = sorted(range(len(lengths)), key=lambda s: lengths[s])
    return [list(same) for _, same in itertools.groupby(ranked, key=lambda s: (lengths[s] - 1).bit_length())]


def _places(cuts, members, device):
    """Where each token of the rows of one bucket comes from, [s, L], and which are real, [s, L] bool."""
    starts = torch.tensor([cuts[s] for s in members], device=device)
    lengths = torch.tensor([cuts[s + 1] - cuts[s] for s in members], device=device)
    place = torch.arange(int(lengths.max()), device=device)
    real = place < lengths[:, None]
    return torch.where(real, starts[:, None] + place, starts[:, None]), real


def _cut(x, at):
    """[1, T, ...] -> [s, L, ...]."""
    return x[0][at]


def _like(real, x):
    return real.view(*real.shape, *[1] * (x.dim() - 2))
