"""What a cache holds: the formula against measurements on real caches, and against numbers worked out by hand."""

from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.cache_utils import DynamicLayer

from benchmarks.tiny import tiny_config, tiny_model
from tptt import MemoryConfig, attach_memory
from tptt.evaluation import CacheFormula, break_even, cache_growth, layer_kv, measured_size, state_in_tokens
from tptt.hf import memory_layers
from tptt.hf.compat import UnsupportedTransformersError
from tptt.hf.read_with_cache import read_with_cache

WINDOW = 8
# tokens of each call: one prompt; a prompt and a token; pieces; one by one; a longer call after a token
CALLS = ([5], [30, 1], [9, 9, 9], [1] * 25, [20, 1, 4])
# grouped heads, sliding windows (12 tokens), learned positions, experts, latent heads, linear attention, ALiBi, fused
# heads
BOUNDED = ("llama", "gemma3_text", "gpt2", "olmoe", "deepseek_v3", "qwen3_next", "bloom", "phi3")
# linear attention in the same layer, an indexer's keys: these keep no window, but a memory
UNBOUNDED = ("falcon_h1", "deepseek_v32")


def converted(family="llama", **options):
    options = {"max_self_attn_length": WINDOW, "feature_width": 64} | options
    return attach_memory(tiny_model(family), MemoryConfig(**options))


@torch.no_grad()
def cache_after(model, calls, cache=None):
    for n in calls:
        _, cache = read_with_cache(model, torch.randint(3, 60, (1, n)), cache)
    return cache


def assert_formula_is_what_is_held(model, patterns=CALLS):
    formula = CacheFormula.of(model)
    for calls in patterns:
        measured = measured_size(cache_after(model, calls))
        assert formula.after(sum(calls), calls[-1]) == measured, calls
        assert measured.bytes == sum(x.bytes for x in measured.layers) > 0


@pytest.mark.parametrize("family", BOUNDED)
def test_bases(family):
    assert_formula_is_what_is_held(tiny_model(family))


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("family", [f for f in BOUNDED if f != "gpt2"])
def test_windows_with_and_without_sinks(family, sinks):
    assert_formula_is_what_is_held(converted(family, sink_tokens=sinks))


@pytest.mark.parametrize("family", UNBOUNDED)
def test_layers_that_hold_more_than_keys_and_values(family):
    assert_formula_is_what_is_held(tiny_model(family))
    assert_formula_is_what_is_held(converted(family, max_self_attn_length=None))


@pytest.mark.parametrize(
    "options",
    [
        {"max_self_attn_length": None},
        {"memory_only_layers": [0]},
        {"memory_only_layers": "all"},
        {"layers": [1]},
        {"states": "kv_head"},
        {"operator": "delta_rule_v"},  # looks at the tokens before
        {"operator": "delta_product"},
        {"operator": "delta_rule_gelu"},  # counts them
        {"max_self_attn_length": 1},
        {"max_self_attn_length": 100},  # wider than anything that is read
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_memories_of_every_kind(family, options):
    model = converted(family, **options)
    assert_formula_is_what_is_held(model)
    kept = {x.layer: x.memory_bytes for x in CacheFormula.of(model).after(30).layers if x.memory_bytes}
    assert kept == {x.layer: x.memory.cached_bytes for x in memory_layers(model)}


def test_bfloat16():
    model = converted("gemma3_text").to(torch.bfloat16)
    assert_formula_is_what_is_held(model)
    assert CacheFormula.of(model).per_token == CacheFormula.of(converted("gemma3_text")).per_token // 2


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("memory", [False, True])
def test_static_caches(family, memory):
    model = converted(family, max_self_attn_length=None) if memory else tiny_model(family)

    def static():
        return StaticCache(config=model.config, max_cache_len=40)

    formula = CacheFormula.of(model, cache=static())
    for calls in ([5], [30, 1]):
        size = formula.after(sum(calls), calls[-1])
        assert size == measured_size(cache_after(model, calls, static()), sum(calls))
        assert size.entries == 40 and (size.memory_bytes > 0) is memory


def test_a_model_without_weights_has_the_same_formula():
    for family in ("llama", "gemma3_text"):  # others ask for values: see tests/estimate
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
        assert CacheFormula.of(empty) == CacheFormula.of(tiny_model(family))
        options = MemoryConfig(max_self_attn_length=WINDOW, feature_width=64)
        assert CacheFormula.of(attach_memory(empty, options)) == CacheFormula.of(converted(family))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v3"])
def test_the_base_inside_a_converted_model(family):
    assert CacheFormula.of(converted(family), base=True) == CacheFormula.of(tiny_model(family))


# ---- by hand --------------------------------------------------------------------------------------------------------


@dataclass
class Llama:
    """Two layers of four query heads of 8 on two key/value heads, float32."""

    token = 2 * 2 * 8 * 4  # bytes of one layer's keys and values: two tensors, two heads
    state = 2 * 64 * 8 * 4  # one for each key/value head, 64 features


def sizes(model, *patterns):
    formula = CacheFormula.of(model)
    return [formula.after(sum(calls), calls[-1]).layers[0] for calls in patterns]


def test_what_a_window_holds():
    """W - 1 tokens after a long call, W while tokens come one by one."""
    short, prompt, step = sizes(converted(), [5], [30], [30, 1])
    assert (short.entries, short.keys_values) == (5, 5 * Llama.token)
    assert (prompt.entries, prompt.keys_values) == (7, 7 * Llama.token)
    assert (step.entries, step.keys_values) == (8, 8 * Llama.token)
    assert short.state == prompt.state == step.state == Llama.state
    assert prompt.bookkeeping == 2 * 7 and prompt.bytes == 7 * Llama.token + Llama.state + 2 * 7


def test_sinks_are_held_once():
    prompt, step = sizes(converted(sink_tokens=2), [30], [30, 1])
    assert (prompt.keys_values, prompt.sinks) == (7 * Llama.token, 2 * Llama.token)
    assert (step.keys_values, step.sinks) == (10 * Llama.token, 0)
    assert prompt.kv_bytes == 9 * Llama.token and step.kv_bytes == 10 * Llama.token


def test_the_ring_begins_when_the_window_and_the_sinks_are_full():
    model = converted(sink_tokens=2)
    held = [x.keys_values for x in sizes(model, *([1] * n for n in range(8, 13)))]
    assert held == [7 * Llama.token, 7 * Llama.token, 10 * Llama.token, 10 * Llama.token, 10 * Llama.token]


def test_the_bases_own_sliding_window_keeps_what_its_last_call_put_together():
    """Of 12 tokens it shows 11: a view of all that the last call saw."""
    model = tiny_model("gemma3_text")  # sliding, full
    short, prompt, pieces, step = sizes(model, [5], [30], [9, 9, 9], [30, 1])
    token = CacheFormula.of(model).layers[0].per_token
    assert [x.entries for x in (short, prompt, pieces, step)] == [5, 11, 11, 11]
    assert [x.keys_values // token for x in (short, prompt, pieces, step)] == [5, 30, 11 + 9, 12]


def test_layers_by_what_they_share():
    kinds = layer_kv(converted(layers=[1], sink_tokens=2), 100)
    assert [(x.whole, x.window, x.state) for x in kinds] == [
        (100 * Llama.token, None, 0),
        (100 * Llama.token, 10 * Llama.token, Llama.state),
    ]


def test_a_state_is_as_large_as_1024_tokens_of_float32():
    """2,048 features: a state of Hk x K x D numbers against the 2 x Hk x D numbers of a token."""
    config = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "num_key_value_heads": 1,
    }
    for states, tokens in (("kv_head", 1024), ("query_head", 2048)):
        base = LlamaForCausalLM(LlamaConfig(**config))
        model = attach_memory(base, MemoryConfig(max_self_attn_length=64, states=states))
        plain, own = CacheFormula.of(model, base=True), CacheFormula.of(model)
        assert state_in_tokens(plain, own) == tokens
        # the window's tokens come on top, and two bytes of bookkeeping for each of 63
        assert break_even(plain, own) == tokens + 64 + 1
        for n, smaller in ((tokens + 64, False), (tokens + 65, True)):
            assert (own.after(n).bytes < plain.after(n).bytes) is smaller


def test_no_break_even_without_a_window_and_at_once_without_a_memory():
    model = converted(max_self_attn_length=None)
    base = CacheFormula.of(model, base=True)
    assert break_even(base, CacheFormula.of(model)) is None
    assert state_in_tokens(base, base) == 0


# ---- measured -------------------------------------------------------------------------------------------------------


def test_what_is_recorded_to_take_tokens_back_is_counted():
    model = converted()
    cache = cache_after(model, [20])
    before = measured_size(cache)
    cache.activate_past_recording()
    after = measured_size(cache_after(model, [3], cache))
    assert before.layers[0].recorded == 0 < after.layers[0].recorded
    assert after.bytes > before.bytes


def test_a_view_keeps_all_of_its_storage():
    cache = DynamicCache()
    cache.layers.append(DynamicLayer())
    keys = torch.zeros(1, 2, 10, 8)
    cache.layers[0].update(keys[:, :, :1], keys[:, :, :1])
    cache.layers[0].keys, cache.layers[0].values = keys[:, :, :3], keys[:, :, 3:6]
    assert measured_size(cache).bytes == keys.nbytes  # one storage, whole, once


def test_states_of_the_bases_own_linear_attention_are_counted():
    cache = cache_after(tiny_model("qwen3_next"), [10])
    linear = [x for x in measured_size(cache).layers if x.base_states]
    assert linear and all(x.kv_bytes == 0 for x in linear)


def test_an_empty_cache_holds_nothing():
    assert (measured_size(DynamicCache()).bytes, measured_size(DynamicCache()).entries) == (0, 0)


def test_growth_is_measured_with_the_cache_that_the_model_makes():
    model, ids = tiny_model("gemma3_text"), torch.randint(3, 60, (40,))
    found = cache_growth(model, ids, (40, 10), chunk=10)
    formula = CacheFormula.of(model)
    assert [x.tokens for x in found] == [10, 40]
    assert found == [formula.after(10, 10), formula.after(40, 10)]
    assert found[-1].layers[0].entries == 11 and found[-1].entries == 40
    with pytest.raises(ValueError, match="reads 41 tokens, got 40"):
        cache_growth(model, ids, (41,))


def test_the_formula_follows_growth_call_by_call():
    model, calls = converted("gemma3_text", sink_tokens=1), [3, 1, 1, 6, 1, 1, 1, 20, 1]
    formula, cache = CacheFormula.of(model), None
    for n, total in zip(calls, accumulate(calls), strict=True):
        cache = cache_after(model, [n], cache)
        assert formula.after(total, n) == measured_size(cache), (n, total)


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_reading_the_shapes_leaves_every_modules_mode():
    model = converted().train()
    model.model.layers[0].eval()
    before = [m.training for m in model.modules()]
    CacheFormula.of(model)
    assert [m.training for m in model.modules()] == before


def test_an_unknown_layer_is_refused():
    class Unknown(DynamicLayer):
        pass

    cache = DynamicCache()
    cache.layers.append(Unknown())
    with pytest.raises(ValueError, match="cache layer 0 is a Unknown, whose size is not known; known are DynamicLayer"):
        CacheFormula.of(tiny_model("llama"), cache=cache)


def test_positions_that_no_token_has_are_refused():
    """CPM-Ant puts a prompt of its own before every call."""
    with pytest.raises(ValueError, match="keeps 34 positions of 2 tokens"):
        CacheFormula.of(tiny_model("cpmant"))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0,), "tokens must be an integer of 1 or more, got 0"),
        ((2.0,), "tokens must be an integer of 1 or more, got 2.0"),
        ((5, 0), "last_call must be an integer of 1 or more, got 0"),
        ((5, 6), "last_call must be 5 at most, the number of tokens, got 6"),
    ],
)
def test_numbers_out_of_range(numbers, message):
    with pytest.raises(ValueError, match=message):
        CacheFormula.of(tiny_model("llama")).after(*numbers)


def test_nothing_is_held_on_the_meta_device():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
        _, cache = read_with_cache(model, torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="holds nothing: use CacheFormula"):
        measured_size(cache)


def test_a_model_that_keeps_no_cache():
    with pytest.raises(
        ValueError, match="OpenAIGPTLMHeadModel keeps no cache: its forward takes none of cache, past_key"
    ):
        CacheFormula.of(tiny_model("openai-gpt"))


def test_a_cache_under_an_unknown_name_is_not_taken_for_none():
    class Renamed(torch.nn.Linear):
        def forward(self, input_ids, cache_params=None, use_cache=None, cache_position=None):
            raise AssertionError("it is refused by its signature")

    with pytest.raises(
        ValueError, match="Renamed takes a cache as cache_params; known names are cache, past_key_values"
    ):
        CacheFormula.of(Renamed(1, 1))


def test_a_cache_that_does_not_come_back_is_not_taken_for_none():
    class Silent(torch.nn.Linear):
        def forward(self, input_ids, past_key_values=None, use_cache=None):
            return {"logits": input_ids}

    with pytest.raises(
        UnsupportedTransformersError, match="Silent takes a cache as 'past_key_values' and returned none"
    ):
        CacheFormula.of(Silent(1, 1))
