"""The checks find what they are for, and say of a model that keeps no cache that they do not apply, by its
signature."""

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from benchmarks.tiny import randomized, tiny_config, tiny_model
from tptt import MemoryConfig, attach_memory
from tptt.evaluation import CHECKS, NotApplicable, verify
from tptt.evaluation.verify import TOLERANCE, pieces
from tptt.hf.compat import UnsupportedTransformersError


def of_kind(kind):
    torch.manual_seed(0)
    return randomized(kind(tiny_config("llama")))


def test_a_sound_model_passes_every_check():
    for model in (tiny_model("llama"), attach_memory(tiny_model("llama"), MemoryConfig(max_self_attn_length=8))):
        found = verify(model)
        assert list(found) == list(CHECKS)
        assert all(isinstance(x, float) and x <= TOLERANCE for x in found.values()), found


class SeesItsCall(LlamaForCausalLM):
    """Its logits depend on how many tokens come in one call."""

    def forward(self, input_ids=None, position_ids=None, **kwargs):
        outputs = super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)
        outputs.logits = outputs.logits * (1 + 0.01 * outputs.logits.shape[1])
        return outputs


class SeesTheFuture(LlamaForCausalLM):
    """Its logits hold a mean over the whole call."""

    def forward(self, input_ids=None, **kwargs):
        outputs = super().forward(input_ids=input_ids, **kwargs)
        outputs.logits = outputs.logits + outputs.logits.mean(1, keepdim=True)
        return outputs


@pytest.mark.parametrize(("kind", "check"), [(SeesItsCall, "packed"), (SeesTheFuture, "no future")])
def test_a_broken_model_fails_its_check(kind, check):
    assert verify(of_kind(kind), (check,))[check] > 100 * TOLERANCE


def test_a_memory_that_is_dropped_between_calls_fails():
    """The fault that this check is there for: every call begins from an empty state."""
    model = attach_memory(tiny_model("llama"), MemoryConfig(max_self_attn_length=8))

    def forget(module, args, kwargs):
        for layer in getattr(kwargs.get("past_key_values", kwargs.get("cache")), "layers", []):
            layer.state = None

    model.model.register_forward_pre_hook(forget, with_kwargs=True)
    assert verify(model, ("pieces",))["pieces"] > 100 * TOLERANCE


def test_a_model_that_keeps_no_cache():
    found = verify(tiny_model("openai-gpt"), ("pieces", "no future"))
    assert isinstance(found["pieces"], NotApplicable)
    assert "OpenAIGPTLMHeadModel keeps no cache: its forward takes none of cache, past_key" in str(found["pieces"])
    assert found["no future"] <= TOLERANCE


def test_a_cache_that_does_not_come_back_is_an_error_and_not_no_cache():
    class Silent(LlamaForCausalLM):
        def forward(self, input_ids=None, past_key_values=None, **kwargs):
            outputs = super().forward(input_ids=input_ids, **kwargs)
            return CausalLMOutput(logits=outputs.logits)

    with pytest.raises(UnsupportedTransformersError, match="takes a cache as 'past_key_values' and returned none"):
        pieces(Silent(tiny_config("llama")).eval())


def test_an_unknown_check():
    with pytest.raises(ValueError, match="unknown check luck; valid are no future, pieces"):
        verify(tiny_model("llama"), ("luck",))
