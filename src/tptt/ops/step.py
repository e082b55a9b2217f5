"""One token: the decoding form of the recurrences.

Legend: B batch, N writes per token, H key/value heads, G query heads per key/value head, K key width, V value width.
"""

import torch

from .dtypes import state_dtype


def step_recurrence(q, k, v, beta, g, *, scale, initial_state, delta, inplace=False):
    """`naive_recurrence` for one token, in as few operations as possible: with a small state, calling one takes longer
    than its work.

    Args: q [B, 1, G*H, K], k [B, 1, N, H, K], v [B, 1, N, H, V], beta [B, 1, N, H] or None (all three perhaps without
    their axis of writes), g [B, 1, H], [B, 1, H, K] or None, initial_state [B, H, K, V] or None. `inplace` overwrites
    initial_state (which must then have the state's dtype and need no gradient). Arguments are taken as valid.
    Returns: o [B, 1, G*H, V] in v's dtype, state [B, H, K, V] (initial_state itself when inplace).
    """
    dtype = state_dtype(q, k, v)
    given = [q, k, v, beta, g, initial_state]
    q, k, write, beta, g, state = [x if x is None or x.dtype == dtype else x.to(dtype) for x in given]
    (batch, *_, heads, key_width), value_width = k.shape, v.shape[-1]
    pairs, writes = batch * heads, k.shape[2] if k.dim() == 5 else 1
    if state is None:
        state = k.new_zeros(pairs, key_width, value_width)
    else:
        state = state.reshape(pairs, key_width, value_width)
    mine = inplace  # whether `state` may be overwritten: neither the caller nor a gradient needs it
    if g is not None:
        decay = g.exp().reshape(pairs, -1, 1)
        state = state.mul_(decay) if mine else state * decay
        mine = inplace or not torch.is_grad_enabled()
    for key, u, strength in ((k, write, beta),) if writes == 1 else _each(k, write, beta):
        key, u = key.reshape(pairs, 1, key_width), u.reshape(pairs, 1, value_width)
        if delta:
            u = torch.baddbmm(u, key, state, alpha=-1)
        if strength is not None:
            u = u * strength.reshape(pairs, 1, 1)
        state = (state.addcmul_ if mine else state.addcmul)(key.mT, u)
        mine = inplace or not torch.is_grad_enabled()
    o = torch.bmm(q.reshape(pairs, -1, key_width), state).view(batch, 1, -1, value_width)
    if scale != 1:
        o = o * scale
    if v.dtype != dtype:
        o = o.to(v.dtype)
    if not inplace:
        return o, state.view(batch, heads, key_width, value_width)
    return o, initial_state if initial_state.is_contiguous() else initial_state.copy_(state.view_as(initial_state))


def _each(k, v, beta):
    """Key, value and strength of each of several writes."""
    return zip(k.unbind(2), v.unbind(2), [None] * k.shape[2] if beta is None else beta.unbind(2), strict=True)
