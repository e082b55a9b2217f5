"""A small random model for any family of causal language models that transformers has."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 61
# what makes a configuration small, under every name that configurations have for it
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "n_embd": 32, "d_model": 32, "intermediate_size": 48, "ffn_dim": 48,
    "n_inner": 48, "dff": 48, "ffn_hidden_size": 48, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2,
    "num_kv_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256,
    "n_ctx": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_layers": 2,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 2, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "expert_ffn_hidden_size": 16, "n_group": 1,
    "topk_group": 1, "moe_k": 2, "moe_topk": 2, "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 6, "rotary_dim": 4, "word_embed_proj_dim": 32, "embedding_size": 32,
    "emb_dim": 32, "attention_dropout": 0.0, "activation_dropout": 0.0, "dropout": 0.0, "hidden_dropout": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "resid_dropout": 0.0, "embed_dropout": 0.0, "embedding_dropout": 0.0, "sliding_window": 12,
    "is_decoder": True, "add_cross_attention": False, "n_mels": 8, "type_vocab_size": 2, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "mamba_n_heads": 8,
    "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "n_mamba_heads": 2, "mamba_dt_rank": 4, "mamba_d_ssm": 64, "ssm_state_size": 8, "state_size": 8, "n_groups": 1,
    "lru_width": 32, "attention_window_size": 12, "time_step_rank": 4, "chunk_size": 8, "num_mem_blocks": 1,
    "moe_layer_start_index": 0, "first_k_dense_replace": 1, "num_dense_layers": 1, "pad_id": 0,
}  # fmt: skip
# None is the default of these and stands for something large
_UNSET = (
    "num_key_value_heads",
    "pad_token_id",
    "n_inner",
    "head_dim",
    "num_experts_per_tok",
    "num_experts",
    "moe_topk",
)
# what a family needs beside `_SMALL`
_OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 12},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "xmod": {"default_language": "en_XX"},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_text": {
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_global_key_value_heads": 2,
    },
    "gemma3n_text": {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "kimi_linear": {"num_experts": 4, "num_experts_per_token": 2},
}
_MOST = 20_000_000
"""Parameters a tiny model may have."""


def tiny_config(family: str, **changes):
    """The configuration of ``family`` (a model_type), small."""
    return _small(CONFIG_MAPPING[family], _OWN.get(family, {}) | changes)


def _has(config, name: str) -> bool:
    """Whether the configuration has a value ``name`` that can be set."""
    if getattr(getattr(type(config), name, None), "fset", True) is None:
        return False
    try:
        return getattr(config, name) is not None or name in _UNSET
    except AttributeError:
        return False
    except RuntimeError:
        return True


def _small(kind, changes: dict[str, Any]):
    default = kind()
    aliases = getattr(default, "attribute_map", {})
    small = {k: v for k, v in _SMALL.items() if _has(default, k) and k not in aliases}
    for name, value in small.items():
        if isinstance(value, float) and type(getattr(default, name, value)) is int:
            small[name] = int(value)  # some configurations are strict about it
    if small.get("kv_lora_rank"):  # multi-head latent attention: its heads have other widths
        small |= {"num_key_value_heads": 4}
        small.pop("head_dim", None)
    for name in getattr(kind, "sub_configs", {}):
        if (part := getattr(default, name, None)) is not None:
            small[name] = _small(type(part), {})
    if (
        getattr(default, "layer_types", None) is not None
        and "layer_types" in inspect.signature(kind.__init__).parameters
    ):
        kinds = list(dict.fromkeys(default.layer_types))
        small["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        small["num_hidden_layers"] = len(small["layer_types"])
    return kind(**small | changes)


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough for the logits to depend on the context."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
            elif "bias" in name or "sink" in name:
                parameter.normal_(0, 0.1)
    return model.eval()


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Move every memory parameter and LoRA matrix off its start, so that nothing passes because of a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".liza." in name or "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_model(family: str, attention: str | None = None, seed: int = 0, **changes) -> PreTrainedModel:
    """A random causal language model of ``family`` in eval mode, float32.

    Raises:
        ValueError: it is not tiny: the family has sizes that nothing here knows.
    """
    options = {} if attention is None else {"attn_implementation": attention}
    config = tiny_config(family, **changes)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config, **options).parameters())
    if size > _MOST:
        raise ValueError(f"{size} parameters: not tiny")
    torch.manual_seed(seed)
    return randomized(AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options))
