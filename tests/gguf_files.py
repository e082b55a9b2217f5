"""Tiny models in GGUF files, written with the package gguf."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|pad|>"]
TOKENS = [*sorted(ByteLevel.alphabet()), "th", "the", "an", "and", *SPECIAL]
MERGES = ["t h", "th e", "a n", "an d"]
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": False, "head_dim": 128}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 32, "sliding_window": 8}),
}
STORED = {name: getattr(gguf.GGMLQuantizationType, name) for name in ("F32", "F16", "Q8_0", "Q4_0", "Q4_1")}


def plain_model(architecture: str):
    """A model with random weights, and no norm at its start."""
    kind, config, further = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = kind(config(**SIZES, **further)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.2)
            if "norm" in name and architecture != "gemma3":
                weight += 1
    return model


def write_gguf(path: Path, model, architecture: str, stored: str = "F32", **changes) -> Path:
    """Write ``model`` and bring its weights to what the file holds of them.

    Args:
        stored: a key of `STORED`, for the matrices.
        changes: ``endianess`` of the writer, ``leave_out`` (beginning of tensors' names) and ``metadata``.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture, endianess=changes.get("endianess", gguf.GGUFEndian.LITTLE))
    _write_settings(writer, config, architecture)
    _write_tokenizer(writer)
    for name, value in changes.get("metadata", {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(name, value)
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if not changes.get("leave_out") or not found.startswith(changes["leave_out"]):
            _write_weight(writer, found, weight, config, architecture, STORED[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_settings(writer, config, architecture: str) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _write_tokenizer(writer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(TOKENS.index("<|begin|>"))
    writer.add_eos_token_id(TOKENS.index("<|end|>"))
    writer.add_pad_token_id(TOKENS.index("<|pad|>"))
    writer.add_chat_template(TEMPLATE)


def _write_weight(writer, name: str, weight, config, architecture: str, kind) -> None:
    """Llama's queries and keys lie in the order of rotated pairs, and Gemma's norms are 1 more than in transformers."""
    array = weight.detach().numpy().copy()
    permuted = architecture == "llama" and (".attn_q." in name or ".attn_k." in name)
    heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
    more = 1 if architecture == "gemma3" and name.endswith("norm.weight") else 0
    if permuted:
        array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    if array.ndim == 1:
        kind = gguf.GGMLQuantizationType.F32
    packed = gguf.quantize(array + np.float32(more), kind)
    writer.add_tensor(name, packed, raw_dtype=kind)
    held = gguf.dequantize(packed, kind) - more
    if permuted:
        held = held.reshape(heads, -1, 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    with torch.no_grad():
        weight.copy_(torch.from_numpy(held))
