"""One token: the decoding form of the recurrence.

Legend: B batch, H key/value heads, G query heads per key/value head, K key width, V value width.
"""

import torch

from .dtypes import state_dtype


def step_delta_rule(q, k, v, beta, g, *, scale, initial_state, inplace=False):
    """The (gated) delta rule for one token (arXiv 2406.06484 eq. 2; with decay 2412.06464 eq. 10).

    The state is read once, for k and q together: with w = beta (v - e^g S^T k), the new state is e^g S + k w^T
    and the output scale * (e^g S^T q + (q . k) w).

    Args: q [B, 1, G*H, K], k [B, 1, H, K], v [B, 1, H, V], beta [B, 1, H], g [B, 1, H] or None,
    initial_state [B, H, K, V] or None. `inplace` overwrites initial_state (which must then have the state's
    dtype and need no gradient). Arguments are taken as valid: see `delta_rule` and `delta_rule_step`.
    Returns: o [B, 1, G*H, V] in v's dtype, state [B, H, K, V] (initial_state itself when inplace).
    """
    dtype = state_dtype(q, k, v)
    batch, _, heads, key_width = k.shape
    keys = k.to(dtype).view(batch, heads, 1, key_width)
    queries = q.to(dtype).view(batch, heads, -1, key_width)
    values = v.to(dtype).view(batch, heads, 1, -1)
    write = beta.to(dtype).view(batch, heads, 1, 1)
    if initial_state is None:
        state = keys.new_zeros(batch, heads, key_width, values.shape[-1])
    else:
        state = initial_state.to(dtype)
    read = torch.cat([keys, queries], 2) @ state
    if g is not None:
        decay = g.to(dtype).exp().view(batch, heads, 1, 1)
        read = decay * read
        state = state.mul_(decay) if inplace else decay * state
    error = write * (values - read[:, :, :1])
    mine = inplace or g is not None  # the tensor is not the caller's, or may be overwritten
    state = (state.addcmul_ if mine else state.addcmul)(keys.transpose(2, 3), error)
    overlap = queries @ keys.transpose(2, 3)
    o = scale * (read[:, :, 1:] + overlap * error)
    return o.flatten(1, 2).unsqueeze(1).to(v.dtype), state
