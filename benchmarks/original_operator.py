"""Our reimplementation of what the public package tptt 0.12.1 computes in the place of the delta rule, from its
description.

It is not the package, and every table says so; it is also no recurrence of the delta rule's kind. In chunks of 64
tokens, with k, q = SiLU / norm and beta the sigmoid of keys averaged over three tokens, per channel, it forms W = T
beta K and U = T beta V with T the inverse of I + tril(beta K K^T, -1), as the chunked delta rule does. The delta rule
then reads within the chunk and carries all of it on. This operator lets token t read q_t S + q_t * (u_t - w_t S), a
product channel by channel, and hands S + w_t^T (u_t - w_t S) of the chunk's last token alone to the next chunk. The
output is RMS-normalised over all heads together and mixed with a fixed mu.

Legend: B batch, T tokens, H heads, D head width, C chunk.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tptt.memory import LinearMemory, Tokens

CHUNK = 64


def _gate(k: torch.Tensor) -> torch.Tensor:
    """beta [B, T, H, D]: sigmoid of the mean of a token's key and the two before it."""
    padded = F.pad(k, (0, 0, 0, 0, 2, 0))
    return torch.sigmoid(sum(padded[:, i : i + k.shape[1]] for i in range(3)) / 3)


def original_operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Output [B, T, H, D] for q, k, v of the same shape; T is padded to whole chunks."""
    tokens = q.shape[1]
    beta = _gate(k)
    q, k = (F.normalize(F.silu(x), dim=-1, eps=1e-6) for x in (q, k))
    v = v * v.shape[-1] ** -0.5
    pad = -tokens % CHUNK
    q, k, v, beta = (
        F.pad(x, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2, 4) for x in (q, k, v, beta)
    )  # [B, H, chunks, C, D]
    lower = ((k * beta) @ k.transpose(-1, -2)).tril(-1)
    solve = torch.linalg.solve_triangular(
        lower + torch.eye(CHUNK), torch.cat([k * beta, v * beta], -1), upper=False, unitriangular=True
    )
    w, u = solve.chunk(2, -1)
    state, out = q.new_full((*q.shape[:2], q.shape[-1], q.shape[-1]), 1e-6), []
    for c in range(q.shape[2]):
        new = u[:, :, c] - w[:, :, c] @ state
        out.append(q[:, :, c] @ state + q[:, :, c] * new)
        state = state + w[:, :, c, -1, :, None] * new[:, :, -1, None, :]
    return torch.stack(out, 2).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens]


class OriginalMemory(LinearMemory):
    """A memory that computes `original_operator`; without padding, packing or a cache, which the benchmark does not
    need."""

    def forward(self, q: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        if tokens.mask is not None:
            raise ValueError("the original's operator is measured on unpadded rows")
        group = self.num_heads // self.num_key_value_heads
        k, v = (x.repeat_interleave(group, 2).float() for x in (tokens.k, tokens.v))
        out = original_operator(q.float(), k, v)
        return out * torch.rsqrt(out.flatten(2).pow(2).mean(-1) + 1e-6)[..., None, None]


def make_original(model: nn.Module) -> nn.Module:
    """Let every memory of ``model`` compute what the original computes; nothing of the memory trains. Returns
    ``model``."""
    for module in model.modules():
        if isinstance(module, LinearMemory):
            module.__class__ = OriginalMemory
            module.requires_grad_(False)
    return model
