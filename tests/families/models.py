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

VOCABULARY = 61
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "attention_dropout": 0.0,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=2, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**_COMMON, num_key_value_heads=1, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=None),
    "mistral-sliding": lambda: MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=12),
    "qwen2": lambda: Qwen2Config(**_COMMON, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=12),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
TOLERANCE = 2e-5


def build(family: str, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A random base model in eval mode, its weights large enough for its logits to depend on the context."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """[batch, length] ids without the special ones."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Move every memory parameter and LoRA matrix off its start, so that no test passes because of a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".liza." in name or "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_near(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Assert equality up to ``tolerance`` of the larger one's largest entry."""
    assert a.shape == b.shape, f"{a.shape} is not {b.shape}"
    scale = max(1.0, float(b.abs().max()))
    error = float((a - b).abs().max()) / scale
    assert error <= tolerance, f"relative difference {error:.2e} exceeds {tolerance:.0e}"
