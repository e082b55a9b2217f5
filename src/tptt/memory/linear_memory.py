"""LinearMemory: the linear-attention branch of one attention layer and its Memory as Gate.

Legend: B batch, T tokens, H query heads, Hk key/value heads, Hs states (H or Hk), D width of a head's queries and keys,
V of its values (D but for multi-head latent attention), K feature width, S state [B, Hs, K, V].
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from tptt.config import MemoryConfig
from tptt.ops.native import Parameters, memory_step, unavailable
from tptt.ops.tracing import are_ordinary, traced

from .features import MAPS, LearnedMap
from .gates import DECAY, MIX, WRITE
from .history import ShortHistory, derivative, mask_null_keys
from .tptt_modes import AVERAGED, AVERAGES, OPERATORS, averaged_beta, both, rotary
from .update import LayerState, MemoryUpdate, Tokens


class Recurrence(NamedTuple):
    """How an operator of the configuration writes."""

    delta: bool = True
    decay: str | None = None  # see gates.DECAY
    virtual: str | None = None  # STEPS virtual tokens for each, see VIRTUAL
    write_gate: str | None = None  # instead of the configuration's
    activation: bool = False  # of the state, see tptt_modes.activated


STEPS = 2
VIRTUAL = {"derivative": derivative, "rotary": rotary, "both": both}
GAIN = 2.0
"""``output_scale`` of the delta rule at the start: half of what a token writes is read again (beta = 1/2)."""
RECURRENCES = {
    "delta_rule": Recurrence(),
    "gated_delta_rule": Recurrence(decay="head"),
    "kda": Recurrence(decay="channel"),
    "linear_attention": Recurrence(delta=False),
    "gated_linear_attention": Recurrence(delta=False, decay="channel"),
    "delta_product": Recurrence(virtual="derivative"),
    "gated_delta_product": Recurrence(virtual="derivative", decay="head"),
} | {name: Recurrence(**options) for name, options in OPERATORS.items()}


class LinearMemory(nn.Module):
    """Linear attention beside softmax attention (LiZA), mixed with it by Memory as Gate.

    Reads the layer's projections before RoPE. Every query head has a state of its own, its keys and values shared
    within a group under GQA; or every key/value head has one (``config.states``). What the delta rule reads is of the
    values' size where a key matches and small where none does, and is scaled by ``output_scale`` [H, V]. What linear
    attention has summed
    grows with the text: it is RMS-normalised per head first, and calibration sets ``output_scale`` to the root mean
        square
    of the softmax branch.

    Args:
        config: what the memory is.
        hidden_size: width of the layer's input.
        num_heads, num_key_value_heads, head_dim: of the attention.
        value_dim: V; None is ``head_dim``.

    Raises:
        ValueError: the write gate is the product of keys and values, and their widths differ; ``config`` has feature
            widths of several layers.
    """

    def __init__(
        self,
        config: MemoryConfig,
        hidden_size: int,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        value_dim: int | None = None,
    ) -> None:
        super().__init__()
        value_dim = value_dim or head_dim
        if not isinstance(config.feature_width, int):
            raise ValueError(f"the memory of one layer has one feature_width, got {list(config.feature_width)}")
        self.config, self.num_heads, self.num_key_value_heads = config, num_heads, num_key_value_heads
        self.head_dim, self.value_dim = head_dim, value_dim
        self.num_states = num_heads if config.states == "query_head" else num_key_value_heads
        self.query_features = MAPS[config.feature_map](num_heads, head_dim, config.feature_width)
        self.key_features = MAPS[config.feature_map](self.num_states, head_dim, config.feature_width)
        self.recurrence = RECURRENCES[config.operator]
        gate, decay = self.recurrence.write_gate or config.write_gate, self.recurrence.decay
        self.averaged = gate if gate in AVERAGES else None
        if gate == "kv" and head_dim != value_dim:
            raise ValueError(f"write gate 'kv' multiplies keys and values: their widths are {head_dim} and {value_dim}")
        self.write_gate = None if self.averaged else WRITE[gate](hidden_size, self.num_states)
        self.history_length = max(AVERAGED - 1 if self.averaged else 0, STEPS - 1 if self.recurrence.virtual else 0)
        width = self.key_features.width
        self.decay_gate = DECAY[decay](hidden_size, self.num_states, width, head_dim) if decay else None
        self.mix_gate = MIX[config.mix_gate](hidden_size, num_heads)
        self.takes_one_call = not (self.history_length or self.recurrence.activation or decay == "channel")
        self.normalised = not self.recurrence.delta
        start = torch.full((num_heads, value_dim), 1.0 if self.normalised else GAIN, dtype=torch.float32)
        self.output_scale = nn.Parameter(start)
        self.register_buffer("mag_weight", torch.full((), config.mag_weight, dtype=torch.float32))

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(states, K, V) of the recurrent state of one sequence."""
        return self.num_states, self.key_features.width, self.value_dim

    @property
    def cached_bytes(self) -> int:
        """What a cache keeps of this memory for one sequence, whatever its length: the state, and where the operator
        asks for them the raw keys and values of the last tokens and their number."""
        state = 4 * math.prod(self.state_shape)
        history = 4 * self.history_length * self.num_key_value_heads * (self.head_dim + self.value_dim)
        return state + history + (8 if self.recurrence.activation else 0)

    def mu(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Memory-as-Gate weight [B, T, H] for the layer's input [B, T, hidden]."""
        return torch.sigmoid(torch.logit(self.mag_weight.float()) + self.mix_gate(hidden_states))

    def begin_from(self, queries: torch.Tensor, keys: torch.Tensor) -> bool:
        """Start the features from linear maps of q and k, ``queries`` [H, D, D] and ``keys`` [Hs, D, D]. Features
        without parameters have no start. False: some have been trained, and stay as they are."""
        both = ((self.query_features, queries), (self.key_features, keys))
        return all([features.begin_from(maps) for features, maps in both if isinstance(features, LearnedMap)])

    def update(self, tokens: Tokens, before: LayerState | None = None) -> MemoryUpdate:
        """What ``tokens`` write, ``before`` being what the calls before them left. Where their mask is False nothing is
        written or forgotten."""
        hidden, k, v, mask = tokens
        before = before or LayerState()
        k, v = k.float(), v.float()
        recent = None
        if mask is not None:  # what is padded may be anything, also not finite
            k, v = (x.masked_fill(~mask[..., None, None], 0.0) for x in (k, v))
            hidden = hidden.masked_fill(~mask[..., None], 0.0)
        if self.history_length:
            recent = ShortHistory(torch.cat([k, v], -1), before.history, mask, self.history_length)
        beta = self._beta(hidden, recent)
        g = None if self.decay_gate is None else F.logsigmoid(self.decay_gate(hidden))
        if mask is not None:
            real = mask[..., None]
            beta = beta * real
            g = None if g is None else g * (real if g.dim() == 3 else real[..., None])
        if self.recurrence.virtual and recent is not None:
            k, v = recent.each(self._virtual).split((self.head_dim, self.value_dim), -1)
            beta = beta.unsqueeze(2).expand(-1, -1, STEPS, -1)
        k, v = (x.repeat_interleave(self.num_states // self.num_key_value_heads, -2) for x in (k, v))
        keys = self.key_features(k.flatten(1, -3)).view(*k.shape[:-1], self.key_features.width)
        if self.recurrence.virtual:
            keys = keys * mask_null_keys(k)
        every, seen = 0, None
        if self.recurrence.activation:
            every = self.config.state_activation_every
            seen = torch.zeros(len(k), dtype=torch.long, device=k.device) if before.seen is None else before.seen
        history = None if recent is None else recent.history
        return MemoryUpdate(keys, v, beta, g, self.recurrence.delta, mask, history, every, seen)

    def _virtual(self, raw: torch.Tensor) -> torch.Tensor:
        """[B, M + L, Hk, D + V] -> [B, L, N, Hk, D + V], the virtual tokens of each."""
        assert self.recurrence.virtual is not None
        make = VIRTUAL[self.recurrence.virtual]
        parts = raw.split((self.head_dim, self.value_dim), -1)
        return torch.cat([make(part, self.history_length, STEPS) for part in parts], -1)

    def _beta(self, hidden_states: torch.Tensor, recent: ShortHistory | None) -> torch.Tensor:
        """Write strength [B, T, Hs]."""
        if self.averaged is None or recent is None:
            return torch.sigmoid(self.write_gate(hidden_states))  # type: ignore[misc]
        source, widths = self.averaged, (self.head_dim, self.value_dim)
        beta = recent.each(lambda x: averaged_beta(x.split(widths, -1), self.history_length, source))
        return beta.repeat_interleave(self.num_states // self.num_key_value_heads, -1)

    def read(self, q: torch.Tensor, update: MemoryUpdate, state: torch.Tensor | None, output_final_state: bool = True):
        """Memory output [B, T, H, V] for q [B, T, H, D], and the state after the last token (perhaps None where nobody
        asks)."""
        o, state = update.run(self.query_features(q), state, output_final_state)
        if self.normalised:
            o = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-6)
        return o * self.output_scale.float(), state

    def advance(self, q: torch.Tensor, tokens: Tokens, before: LayerState) -> tuple[torch.Tensor, LayerState]:
        """Memory output [B, T, H, V] for q [B, T, H, D] of ``tokens``, which are written first, and what goes on."""
        update = self.update(tokens, before)
        read, state = self.read(q, update, before.memory)
        return read, LayerState(state, update.history, update.seen_after)

    def absorb(self, tokens: Tokens, before: LayerState) -> LayerState:
        """What goes on after ``tokens``, of which nothing is read."""
        update = self.update(tokens, before)
        return LayerState(update.apply(before.memory), update.history, update.seen_after)

    def forward(self, q: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """Memory output [B, T, H, V] of whole sequences, from an empty memory; in both directions where ``config`` says
        so."""
        o, _ = self.read(q, self.update(tokens), None, False)
        if not self.config.bidirectional:
            return o
        back, _ = self.read(q.flip(1), self.update(tokens.map(lambda x: x.flip(1))), None, False)
        return (o + back.flip(1)) / 2

    def step(
        self, softmax: torch.Tensor, q: torch.Tensor, tokens: Tokens, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """One real token of every row through the whole branch in one native call: what `advance` and `mix` give,
        [B, 1, H * V], and the state, which is overwritten. None: not for these tokens, or not here; take those then.
        """
        if not self._serves(softmax, q, tokens):
            return None
        learned = self._parameters_of_a_step()
        if learned.output_scale.dtype != torch.float32 or learned.mag_weight.dtype != torch.float32:
            return None
        shape = (len(q), *self.state_shape)
        if state is None:
            state = torch.zeros(shape, dtype=torch.float32, device=q.device)
        elif state.shape != shape:  # the kernel would take it as it is
            raise ValueError(
                f"a state of this memory has shape {list(shape)}, got {list(state.shape)}: start from an empty cache"
            )
        state = state.contiguous()
        delta, features = self.recurrence.delta, self.config.feature_map
        return memory_step(q, tokens.k, tokens.v, tokens.hidden, softmax, state, learned, delta, features), state

    def _serves(self, softmax: torch.Tensor, q: torch.Tensor, tokens: Tokens) -> bool:
        """Whether one native call computes this memory for these tensors."""
        dtype = softmax.dtype
        return (
            self.takes_one_call
            and q.shape[1] == 1
            and tokens.mask is None
            and not torch.is_grad_enabled()
            and not traced()
            and q.is_cpu
            and are_ordinary(q)
            and not unavailable()
            and dtype in (torch.float32, torch.bfloat16)
            and q.dtype == tokens.k.dtype == tokens.v.dtype == tokens.hidden.dtype == dtype
        )

    def _parameters_of_a_step(self) -> Parameters:
        part = self._modules.get
        queries, write, decay, mix = (part(n) for n in ("query_features", "write_gate", "decay_gate", "mix_gate"))
        return Parameters(
            query_map=_learned(queries, "weight"),
            key_map=_learned(part("key_features"), "weight"),
            write_weight=_learned(write, "weight"),
            write_bias=_learned(write, "bias"),
            decay_weight=_learned(decay, "weight"),
            decay_bias=_learned(decay, "bias"),
            mix_weight=_learned(mix, "weight"),
            mix_bias=_learned(mix, "bias"),
            mix_down=_learned(mix, "down"),
            frequencies=queries._buffers.get("frequencies"),
            output_scale=_learned(self, "output_scale"),
            mag_weight=self.mag_weight,
        )

    def softmax_share(self, softmax: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """(1 - mu) softmax, [B, T, H * V]."""
        soft = softmax.float().unflatten(-1, (self.num_heads, -1))
        return (soft * (1 - self.mu(hidden_states)[..., None])).flatten(-2).to(softmax.dtype)

    def mix(self, softmax: torch.Tensor, memory: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """(1 - mu) softmax + mu memory; softmax [B, T, H * V] in any precision, memory [B, T, H, V]. mu = 0 is
        exact."""
        soft = softmax.float().unflatten(-1, (self.num_heads, -1))
        return torch.lerp(soft, memory, self.mu(hidden_states)[..., None]).flatten(-2).to(softmax.dtype)


def _learned(module: nn.Module | None, name: str) -> Any:
    """``module.name`` or None, five times as fast where it is a parameter: a token's step takes as long as ten of
    these."""
    if module is None:
        return None
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found
