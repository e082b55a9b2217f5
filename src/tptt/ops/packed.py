"""Packed sequences: a row of several sequences is cut apart into batches of sequences of similar length.

A row is padded to at most twice its length with tokens that write nothing, so that sequences run side by side instead
of one after the other.
"""

import itertools

import torch

from .dtypes import state_dtype


def run_packed(run, call, cuts):
    """(o [1, T, G*H, V], state [S, H, K, V] or None) of a call whose row [1, T, ...] holds S sequences.

    Args: `run(call) -> (o, state)` computes sequences side by side; `call.initial_state` is [S, H, K, V] or None;
    `cuts` says where each of the sequences begins, and T. Arguments are taken as valid.
    """
    places, outputs, order, states = [], [], [], []
    for members in _buckets(cuts):
        at, real = _places(cuts, members, call.inputs.k.device)
        state = None if call.initial_state is None else call.initial_state[members]
        o, state = run(call._replace(inputs=_cut(call.inputs, at, real), initial_state=state))
        places.append(at[real])
        outputs.append(o[real])
        order += members
        states.append(state)
    back = torch.argsort(torch.cat(places))
    o = torch.cat(outputs)[back].unsqueeze(0)
    if not call.output_final_state:
        return o, None
    q, k, v, *_ = call.inputs
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


def _cut(inputs, at, real):
    """Inputs [1, T, ...] -> [s, L, ...], where padding neither writes nor decays."""
    cut = inputs.map(lambda x: x[0][at])

    def silent(x):  # filled, not multiplied: a decay may be minus infinity
        return x if x is None else x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0.0)

    g = silent(cut.g)
    if cut.beta is None:  # without a key nothing is written
        return cut._replace(k=silent(cut.k), g=g)
    return cut._replace(beta=silent(cut.beta), g=g)
