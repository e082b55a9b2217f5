"""LinearMemory: the linear-attention branch of one attention layer and its Memory as Gate.

Legend: B batch, T tokens, H query heads, Hk key/value heads, D head width, K feature width, S state [B, H, K, D].
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tptt.configuration import MemoryConfig

from .features import MAPS
from .gates import DECAY, MIX, WRITE
from .writes import Writes

# operator: written by the delta rule? and what its decay is for
RECURRENCES: dict[str, tuple[bool, str | None]] = {
    "delta_rule": (True, None),
    "gated_delta_rule": (True, "head"),
    "kda": (True, "channel"),
    "linear_attention": (False, None),
    "gated_linear_attention": (False, "channel"),
}


class LinearMemory(nn.Module):
    """Linear attention beside softmax attention (LiZA), mixed with it by Memory as Gate.

    Reads the layer's projections before RoPE. Every query head has a state of its own; under GQA the keys and values
    of a group are shared. The output is RMS-normalised per head and scaled by ``output_scale`` [H, D], which
    calibration sets to the root mean square of the softmax branch.

    Args:
        config: what the memory is.
        hidden: width of the layer's input.
        heads, kv_heads, head_dim: of the attention.
    """

    def __init__(self, config: MemoryConfig, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.config, self.heads, self.kv_heads, self.head_dim = config, heads, kv_heads, head_dim
        self.query_features = MAPS[config.feature_map](heads, head_dim)
        self.key_features = MAPS[config.feature_map](heads, head_dim)
        self.write_gate = WRITE[config.write_gate](hidden, heads)
        self.delta, decay = RECURRENCES[config.operator]
        self.decay_gate = DECAY[decay](hidden, heads, self.key_features.width) if decay else None
        self.mix_gate = MIX[config.mix_gate](hidden, heads)
        self.output_scale = nn.Parameter(torch.ones(heads, head_dim, dtype=torch.float32))
        self.register_buffer("mag_weight", torch.full((), config.mag_weight, dtype=torch.float32))

    def mu(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Memory-as-Gate weight [B, T, H] for the layer's input [B, T, hidden]."""
        return torch.sigmoid(torch.logit(self.mag_weight.float()) + self.mix_gate(hidden_states))

    def writes(
        self, hidden_states: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> Writes:
        """What the tokens write; k, v [B, T, Hk, D]; where ``mask`` [B, T] is False nothing is written or forgotten."""
        group = self.heads // self.kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        beta = torch.sigmoid(self.write_gate(hidden_states))
        g = None if self.decay_gate is None else F.logsigmoid(self.decay_gate(hidden_states))
        v = v.float()
        if mask is not None:
            real = mask[..., None]
            beta = beta * real
            g = None if g is None else g * (real if g.dim() == 3 else real[..., None])
            v = v.masked_fill(~real[..., None], 0.0)  # a padded value may be anything, also not finite
        return Writes(self.key_features(k), v, beta, g, self.delta)

    def read(self, q: torch.Tensor, writes: Writes, state: torch.Tensor | None):
        """Memory output [B, T, H, D] for q [B, T, H, D], and the state after the last token."""
        o, state = writes.run(self.query_features(q), state)
        o = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-6) * self.output_scale.float()
        return o, state

    def mix(self, softmax: torch.Tensor, memory: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """(1 - mu) softmax + mu memory; softmax [B, T, H * D] in any precision, memory [B, T, H, D]. mu = 0 is exact."""
        soft = softmax.float().unflatten(-1, (self.heads, self.head_dim))
        return torch.lerp(soft, memory, self.mu(hidden_states)[..., None]).flatten(-2).to(softmax.dtype)
