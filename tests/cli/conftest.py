"""A random base with a tokenizer of its own, as a folder."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tools.train_base.train import build_tokenizer

SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "so", "tu")
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in ("x", "z")]


@pytest.fixture(scope="session")
def make_base(tmp_path_factory):
    """make(positions) -> folder of a random Llama with as many positions, text.txt and table.csv of the same words."""

    def make(positions):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("base")
        order = torch.randint(len(WORDS), (12000,)).tolist()
        text = "\n".join(" ".join(WORDS[w] for w in order[i : i + 10]) for i in range(0, len(order), 10))
        (folder / "text.txt").write_text(text)
        (folder / "table.csv").write_text("words\n" + text)
        tokenizer = build_tokenizer([text], 700)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=positions,
            eos_token_id=0,
            pad_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
