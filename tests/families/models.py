"""Tiny random models of every supported family, and the helpers that compare them."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from benchmarks.tiny import randomize, randomized

__all__ = ["assert_near", "build", "randomize", "tokens"]

VOCABULARY = 61
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attention_dropout": 0.0,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=2, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**_COMMON, num_key_value_heads=1, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=None),
    "mistral-sliding": lambda: MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=12),
    "qwen2": lambda: Qwen2Config(**_COMMON, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=12),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}
FAMILIES = tuple(CONFIGS)
TOLERANCE = 5e-5


def build(family: str, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A random base model in eval mode, its weights large enough for its logits to depend on the context."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=attention)
    return randomized(model)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """[batch, length] ids without the special ones."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_near(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Assert equality up to ``tolerance`` of the larger one's largest entry."""
    assert a.shape == b.shape, f"{a.shape} is not {b.shape}"
    scale = max(1.0, float(b.abs().max()))
    error = float((a - b).abs().max()) / scale
    assert error <= tolerance, f"relative difference {error:.2e} exceeds {tolerance:.0e}"
