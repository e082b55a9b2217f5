"""The configuration of the small Llama that tests of several rooms build."""

from transformers import LlamaConfig


def small_llama_config(**changes):
    """Two layers of two query heads and one key/value head, 32 wide; 64 tokens in the vocabulary unless ``changes``
    say otherwise."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**settings | changes)
