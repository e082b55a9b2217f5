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
    value_width, pairs = v.shape[4], batch * heads  # an operation costs as much as its work: few, on [B*H, ., .]
    queries = q.to(dtype).reshape(pairs, -1, key_width)
    decay = None if g is None else g.to(dtype).exp().reshape(pairs, 1, -1)
    if initial_state is None:
        state = queries.new_zeros(pairs, key_width, value_width)
    else:
        state = initial_state.to(dtype).reshape(pairs, key_width, value_width)
    mine = inplace  # may `state` be overwritten: it is neither the caller's nor what a gradient needs
    for j in range(steps):
        key, write = k[:, 0, j].to(dtype).reshape(pairs, 1, -1), v[:, 0, j].to(dtype).reshape(pairs, 1, -1)
        readers = torch.cat([key, queries], 1) if j == steps - 1 else key
        read = torch.bmm(readers if decay is None else readers * decay, state)
        if delta:
            write = write - read[:, :1]
        if beta is not None:
            write = write * beta[:, 0, j].to(dtype).reshape(pairs, 1, 1)
        if decay is not None:
            state = (state.mul_ if mine else state.mul)(decay.transpose(1, 2))
            decay, mine = None, True
        state = (state.addcmul_ if mine else state.addcmul)(key.transpose(1, 2), write)
        mine = inplace
    o = torch.baddbmm(read[:, 1:], torch.bmm(queries, key.transpose(1, 2)), write, beta=scale, alpha=scale)
    o, state = o.view(batch, 1, -1, value_width).to(v.dtype), state.view(batch, heads, key_width, value_width)
    if not inplace:
        return o, state
    return o, initial_state if initial_state.is_contiguous() else initial_state.copy_(state)
