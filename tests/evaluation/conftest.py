import pytest
import torch
from transformers import LlamaForCausalLM

from tests.small_llama import small_llama_config


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = small_llama_config()
    return LlamaForCausalLM(config).eval()
