"""What transformers may rename: it is refused when the memory is attached, never taken for "none"."""

import pytest
import torch
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.llama.modeling_llama import LlamaAttention

from benchmarks.tiny import tiny_model
from tests.families.models import tokens
from tptt import MemoryConfig, attach_memory
from tptt.hf import UnsupportedAttentionError, compat
from tptt.hf.cache import unknown_cache_layers
from tptt.hf.compat import UnsupportedTransformersError, cache_argument, cache_in, cache_keyword, cache_of


def with_attention(kind):
    """A tiny Llama whose attention modules are of the class ``kind``."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = kind
    return model


class RenamedCache(LlamaAttention):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, kv_store=None, **kwargs):
        return super().forward(hidden_states, position_embeddings, attention_mask, kv_store, **kwargs)


class HiddenCache(LlamaAttention):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)


def test_a_cache_argument_of_another_name_is_refused_when_the_memory_is_attached():
    model = with_attention(RenamedCache)
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(UnsupportedAttentionError, match="kv_store"):
        attach_memory(model, MemoryConfig())
    assert [name for name, _ in model.named_modules()] == before


def test_an_attention_without_a_cache_in_a_model_with_one_is_refused():
    with pytest.raises(UnsupportedAttentionError, match="takes none under a known name"):
        attach_memory(with_attention(HiddenCache), MemoryConfig())


@pytest.mark.parametrize("name", ["state", "kv", "past"])
def test_a_cache_that_arrives_under_another_name_is_refused(name):
    with pytest.raises(ValueError, match=f"got a cache as {name}"):
        cache_in({"hidden_states": None, name: DynamicCache()}, "Attention")


def test_a_cache_under_two_names_is_refused():
    with pytest.raises(ValueError, match="two names"):
        cache_in({"cache": DynamicCache(), "past_key_values": DynamicCache()}, "Attention")


@pytest.mark.parametrize("name", compat.CACHE_ARGUMENTS)
def test_every_known_name_is_found(name):
    cache = DynamicCache()
    assert cache_in({"hidden_states": 1, name: cache}, "Attention") is cache


def test_outputs_with_a_cache_of_another_name_are_refused():
    assert cache_of({"logits": 1}) is None
    with pytest.raises(UnsupportedTransformersError, match="holds a cache as kv"):
        cache_of({"logits": 1, "kv": DynamicCache()})


def test_the_cache_goes_to_the_model_under_its_own_name():
    model, cache = tiny_model("llama"), DynamicCache()
    with torch.no_grad():
        out = model(input_ids=tokens(1, 5), use_cache=True, **cache_keyword(model, cache))
    assert cache_of(out) is cache
    assert cache.get_seq_length() == 5
    assert list(cache_keyword(model, cache)) == [cache_argument(model)]
    assert cache_keyword(model, None) == {}
    with pytest.raises(UnsupportedTransformersError, match="takes no cache"):
        cache_keyword(torch.nn.Linear(2, 2), cache)


class LeakyLayer(DynamicLayer):
    """A kind of cache layer that nobody here knows."""


def test_a_cache_layer_of_another_kind_is_refused_when_the_memory_is_attached(monkeypatch):
    model = tiny_model("llama")
    assert unknown_cache_layers(model.config, [0, 1]) == []
    made = lambda self, *args, **kwargs: setattr(self, "layers", [LeakyLayer(), LeakyLayer()])  # noqa: E731
    monkeypatch.setattr(DynamicCache, "__init__", made)
    with pytest.raises(UnsupportedAttentionError, match="LeakyLayer"):
        attach_memory(model, MemoryConfig())
    assert not any("liza" in name for name, _ in model.named_modules())


@pytest.fixture
def fresh_check():
    compat.check_cache_layers.cache_clear()
    yield
    compat.check_cache_layers.cache_clear()


def gone(self):
    raise AttributeError("renamed")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DynamicSlidingWindowLayer, "cumulative_length"),
        (DynamicSlidingWindowLayer, "sliding_window"),
        (DynamicLayer, "get_mask_sizes"),
        (DynamicLayer, "batch_select_indices"),
    ],
    ids=str,
)
def test_a_renamed_attribute_of_a_cache_layer_is_refused_when_the_memory_is_attached(
    kind, name, monkeypatch, fresh_check
):
    keep = property(gone, lambda self, value: None)
    monkeypatch.setattr(kind, name, keep, raising=False)
    with pytest.raises(UnsupportedTransformersError, match=f"{kind.__name__}.*"):
        attach_memory(tiny_model("llama"), MemoryConfig())


def test_a_generate_that_makes_its_cache_elsewhere_is_refused(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.delattr(GenerationMixin, "_prepare_cache_for_generation")
    with pytest.raises(UnsupportedTransformersError, match="would get no states"):
        attach_memory(model, MemoryConfig())
    assert not any("liza" in name for name, _ in model.named_modules())


def test_a_configuration_that_keeps_the_attention_function_elsewhere_is_refused():
    with pytest.raises(UnsupportedTransformersError, match="which attention function"):
        compat.config_with_attention(object(), compat.NO_SOFTMAX)
