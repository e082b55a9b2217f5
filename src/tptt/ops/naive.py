"""The definition: one loop over the tokens, differentiated by autograd. Never optimised.

Legend: B batch, T tokens, N writes per token, H key/value heads, G query heads per key/value head, K key width, V value
width.
"""

import torch

from .dtypes import state_dtype


def naive_recurrence(q, k, v, beta, g, *, scale, initial_state, delta):
    """Every recurrence of README.md ("What is computed"), token by token.

    S = exp(g_t) S;  for j in 1..N:  S += beta_tj k_tj (v_tj - S^T k_tj)^T, or without delta
    S += beta_tj k_tj v_tj^T;  then  o_t = scale * S^T q_t.

    Args: q [B, T, G*H, K], k [B, T, N, H, K], v [B, T, N, H, V], beta [B, T, N, H] or None (1), g [B, T, H],
    [B, T, H, K] or None (natural log of the decay), initial_state [B, H, K, V] or None. Arguments are taken as valid.
    Returns: o [B, T, G*H, V] in v's dtype, state [B, H, K, V] in float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(q, k, v)
    batch, tokens, writes, heads, key_width = k.shape
    queries = q.to(dtype).view(batch, tokens, heads, -1, key_width)
    keys, values = k.to(dtype), v.to(dtype)
    strengths = None if beta is None else beta.to(dtype).unsqueeze(-1)
    decays = None if g is None else (g if g.dim() == 4 else g.unsqueeze(3)).to(dtype).exp().unsqueeze(-1)
    if initial_state is None:
        state = keys.new_zeros(batch, heads, key_width, v.shape[-1])
    else:
        state = initial_state.to(dtype)
    outputs = []
    for t in range(tokens):
        if decays is not None:
            state = decays[:, t] * state
        for j in range(writes):
            write = values[:, t, j]
            if delta:
                write = write - torch.einsum("bhkv,bhk->bhv", state, keys[:, t, j])
            if strengths is not None:
                write = strengths[:, t, j] * write
            state = state + torch.einsum("bhk,bhv->bhkv", keys[:, t, j], write)
        outputs.append(scale * torch.einsum("bhkv,bhgk->bhgv", state, queries[:, t]).flatten(1, 2))
    return torch.stack(outputs, 1).to(v.dtype), state
