"""One token: the decoding form of the recurrences.

Legend: B batch, N writes per token, H key/value heads, G query heads per key/value head, K key width, V value width.
"""

import torch

from .dtypes import state_dtype


def step_recurrence(q, k, v, beta, g, *, scale, initial_state, delta, inplace=False):
    """`naive_recurrence` for one token. The last of its writes reads the state once, for k and q together: with
    d = exp(g) and w = beta (v - S^T (d k)), the new state is d S + k w^T and the output scale * (S^T (d q) + (q . k) w).

    Args: q [B, 1, G*H, K], k [B, 1, N, H, K], v [B, 1, N, H, V], beta [B, 1, N, H] or None, g [B, 1, H], [B, 1, H, K]
    or None, initial_state [B, H, K, V] or None. `inplace` overwrites initial_state (which must then have the state's
    dtype and need no gradient). Arguments are taken as valid.
    Returns: o [B, 1, G*H, V] in v's dtype, state [B, H, K, V] (initial_state itself when inplace).
    """
    dtype = state_dtype(q, k, v)
    batch, _, steps, heads, key_width = k.shape
    queries = q.to(dtype).view(batch, heads, -1, key_width)
    keys, values = (x.to(dtype)[:, 0].unsqueeze(3) for x in (k, v))  # [B, N, H, 1, K or V]
    decay = None if g is None else g.to(dtype).exp().view(batch, heads, 1, -1)
    if initial_state is None:
        state = keys.new_zeros(batch, heads, key_width, values.shape[-1])
    else:
        state = initial_state.to(dtype)
    for j in range(steps):
        mine = inplace  # may `state` be overwritten: it is neither the caller's nor what a gradient needs
        key, last = keys[:, j], j == steps - 1
        readers = torch.cat([key, queries], 2) if last else key
        read = (readers if decay is None else readers * decay) @ state
        write = values[:, j] - read[:, :, :1] if delta else values[:, j]
        if beta is not None:
            write = beta[:, 0, j].to(dtype).view(batch, heads, 1, 1) * write
        if decay is not None:
            state = (state.mul_ if mine else state.mul)(decay.transpose(2, 3))
            decay, mine = None, True
        state = (state.addcmul_ if mine else state.addcmul)(key.transpose(2, 3), write)
    o = scale * (read[:, :, 1:] + (queries @ key.transpose(2, 3)) * write)
    return o.flatten(1, 2).unsqueeze(1).to(v.dtype), state
