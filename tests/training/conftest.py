import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tptt import TpttConfig, TpttModel


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Folder of a random Llama with 64 tokens in its vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def tiny(tiny_llama):
    """() -> a TpttModel with LoRA on it, the same every time."""

    def make(**options):
        torch.manual_seed(0)
        lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        return TpttModel(TpttConfig(base_model_name=str(tiny_llama), lora_config=lora, **options))

    return make
