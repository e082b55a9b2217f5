"""A forward pass asks the device nothing: on a GPU the host would have to wait for each answer.

Tensors of torch's meta device have no values. To ask for one raises an error, as `bool`, `item` and `tolist` do.
"""

import pytest
import torch
from transformers import DynamicCache, masking_utils

from benchmarks.tiny import tiny_config
from tptt import TpttConfig
from tptt.config import OPERATORS
from tptt.hf.meta_model import skeleton

TOKENS = 24


@pytest.fixture(autouse=True)
def no_question_of_transformers(monkeypatch):
    """transformers itself asks whether rows without a mask are packed; that question is not ours."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


def model_of(family="llama", **memory):
    base = tiny_config(family)
    base.pad_token_id = None  # or else transformers looks for padding
    config = TpttConfig(text_config=base, **memory)
    return skeleton(config, torch.float32)


def ids(rows=2, tokens=TOKENS):
    return torch.zeros(rows, tokens, dtype=torch.long, device="meta")


def test_a_meta_tensor_has_no_answer():
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(ids().any())


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("window", [None, 6])
def test_training(operator, window):
    model = model_of(operator=operator, max_self_attn_length=window).train()
    found = model(input_ids=ids(), labels=ids(), use_cache=False)
    found.loss.backward()
    assert found.loss.is_meta and found.logits.shape[:2] == (2, TOKENS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("window", [None, 6])
def test_prefill_and_decoding(family, window):
    model = model_of(family, max_self_attn_length=window).eval()
    with torch.no_grad():
        found = model(input_ids=ids(), use_cache=True)
        for _ in range(3):
            found = model(input_ids=ids(tokens=1), past_key_values=found.past_key_values, use_cache=True)
    assert isinstance(found.past_key_values, DynamicCache) and found.logits.shape[:2] == (2, 1)
    assert found.past_key_values.get_seq_length() == TOKENS + 3
