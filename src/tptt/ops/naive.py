"""The definition: one loop over the tokens, differentiated by plain autograd. Never optimised.

Legend: B batch, T tokens, H key/value heads, G query heads per key/value head, K key width, V value width.
"""

import torch

from .dtypes import state_dtype


def naive_delta_rule(q, k, v, beta, g, *, scale, initial_state):
    """(Gated) delta rule token by token (arXiv 2406.06484 eq. 2 and, with decay, 2412.06464 eq. 10).

    S = exp(g_t) S;  S += beta_t k_t (v_t - S^T k_t)^T;  o_t = scale * S^T q_t.

    Args: q [B, T, G*H, K], k [B, T, H, K], v [B, T, H, V], beta [B, T, H], g [B, T, H] or None (natural log
    of the decay), initial_state [B, H, K, V] or None. Arguments are taken as valid: see `delta_rule`.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(q, k, v)
    batch, tokens, heads, key_width = k.shape
    queries = q.to(dtype).view(batch, tokens, heads, -1, key_width)
    keys, values, writes = k.to(dtype), v.to(dtype), beta.to(dtype)
    decays = None if g is None else g.to(dtype).exp()
    if initial_state is None:
        state = keys.new_zeros(batch, heads, key_width, v.shape[-1])
    else:
        state = initial_state.to(dtype)
    outputs = []
    for t in range(tokens):
        if decays is not None:
            state = decays[:, t, :, None, None] * state
        predicted = torch.einsum("bhkv,bhk->bhv", state, keys[:, t])
        error = writes[:, t, :, None] * (values[:, t] - predicted)
        state = state + torch.einsum("bhk,bhv->bhkv", keys[:, t], error)
        outputs.append(scale * torch.einsum("bhkv,bhgk->bhgv", state, queries[:, t]).flatten(1, 2))
    return torch.stack(outputs, 1).to(v.dtype), state
