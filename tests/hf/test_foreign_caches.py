"""Caches that somebody else has made, copied, cut or filled: they work, or are refused with what is valid."""

import copy

import pytest
import torch
from transformers import DynamicCache, Gemma3TextConfig, QuantizedCache, StaticCache
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from benchmarks.tiny import randomized
from tests.families.models import assert_near, build, randomize, tokens
from tptt import MemoryConfig, attach_memory
from tptt.inference.snapshot import new_cache

WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}
SETTINGS = [{}, WINDOW, WINDOW | {"layers": [1]}, {"memory_only_layers": [0]}]


@pytest.fixture(params=SETTINGS, ids=str)
def model(request):
    return randomize(attach_memory(build("llama"), MemoryConfig(**request.param)))


def read(model, ids, cache):
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=cache).logits


def goes_on(model, cache, before=20):
    """Whether reading more from ``cache`` gives what reading everything at once gives."""
    ids = torch.cat([tokens(1, before), tokens(1, 5, seed=3)], 1)
    with torch.no_grad():
        assert_near(read(model, ids[:, before:], cache), model(input_ids=ids, use_cache=False).logits[:, before:])


def test_made_by_the_caller(model):
    for cache in (DynamicCache(config=model.config), DynamicCache()):
        read(model, tokens(1, 20), cache)
        goes_on(model, cache)


@pytest.mark.parametrize("kinds", ["sliding full sliding", "full sliding sliding"])
@pytest.mark.parametrize("layers", ["all", [0, 2], [1], [2]], ids=str)
@pytest.mark.parametrize("settings", [{}, {"max_self_attn_length": 8}], ids=str)
def test_made_without_configuration_for_layers_of_several_kinds(kinds, layers, settings):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=12,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        layer_types=[f"{kind}_attention" for kind in kinds.split()],
    )
    base = randomized(AutoModelForCausalLM.from_config(config))
    model = randomize(attach_memory(base, MemoryConfig(layers=layers, feature_width=32, **settings)))
    for cache in (DynamicCache(), DynamicCache(config=config)):
        read(model, tokens(1, 20), cache)
        goes_on(model, cache)


def test_copied(model):
    cache = new_cache(model)
    read(model, tokens(1, 20), cache)
    goes_on(model, copy.deepcopy(cache))
    goes_on(model, cache)


def test_of_an_equal_model(model):
    cache = new_cache(model)
    read(model, tokens(1, 20), cache)
    goes_on(copy.deepcopy(model), cache)


def test_of_a_memory_of_another_configuration():
    model, other = (attach_memory(build("llama"), MemoryConfig(operator=x)) for x in ("delta_rule", "linear_attention"))
    cache = new_cache(model)
    read(model, tokens(1, 20), cache)
    with pytest.raises(ValueError, match="filled by a memory of another configuration"):
        read(other, tokens(1, 5), cache)


def test_of_the_memory_of_fewer_layers():
    model = attach_memory(build("llama"), MemoryConfig(layers=[1]))
    cache = new_cache(model)
    read(model, tokens(1, 20), cache)
    with pytest.raises(ValueError, match="layer 0 already holds 20 tokens that this memory has not read"):
        read(attach_memory(build("llama")), tokens(1, 5), cache)


def test_filled_by_the_base():
    base, model = build("llama"), attach_memory(build("llama"))
    filled = [DynamicCache(), StaticCache(config=base.config, max_cache_len=40)]
    for cache in filled:
        read(base, tokens(1, 20), cache)
    filled.append(
        DynamicCache([(torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8))] * 2)
    )  # as data-parallel hands it on
    for cache in filled:
        with pytest.raises(ValueError, match="already holds 20 tokens that this memory has not read"):
            read(model, tokens(1, 5), cache)


@pytest.mark.parametrize("settings", [{}, {"layers": [1]}], ids=str)
def test_cut_by_hand(settings):
    """Slicing the keys leaves the memory what it has read."""
    model = attach_memory(build("llama"), MemoryConfig(**settings))
    cache = new_cache(model)
    read(model, tokens(1, 20), cache)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :-3], layer.values[:, :, :-3]
    with pytest.raises(
        ValueError, match=r"holds the keys of 17 tokens, .* has read 20: .*|layers hold different numbers"
    ):
        read(model, tokens(1, 5), cache)


def test_reset(model):
    cache = new_cache(model)
    read(model, tokens(1, 9, seed=9), cache)
    cache.reset()
    read(model, tokens(1, 20), cache)
    goes_on(model, cache)


def test_static():
    model = randomize(attach_memory(build("llama")))
    cache = StaticCache(config=model.config, max_cache_len=40)
    read(model, tokens(1, 20), cache)
    goes_on(model, cache)
    with pytest.raises(ValueError, match="a static cache cannot be bounded by max_self_attn_length"):
        read(attach_memory(build("llama"), MemoryConfig(**WINDOW)), tokens(1, 5), StaticCache(model.config, 40))


@pytest.mark.parametrize("layers", ["all", [1]], ids=str)
def test_quantised_keys_cannot_carry_a_state(layers):
    model = attach_memory(build("llama"), MemoryConfig(layers=layers))
    with pytest.raises(ValueError, match="Fp8QuantizedLayer cannot carry a memory; supported are DynamicLayer"):
        read(model, tokens(1, 5), QuantizedCache("fp8", model.config))
