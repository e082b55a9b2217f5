"""A compiled decoding step, whole graph, gives what the uncompiled one gives."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, randomize, tokens
from tptt import MemoryConfig, attach_memory
from tptt.hf.patch import prepare_cache


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def decoded(model, ids, step):
    """Logits of ids after a prefill of 8, token by token through ``step``."""
    cache = StaticCache(config=model.config, max_cache_len=32)
    prepare_cache(model, cache)
    with torch.no_grad():
        out = [model(input_ids=ids[:, :8], past_key_values=cache, use_cache=True).logits]
        for i in range(8, ids.shape[1]):
            out.append(step(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits.clone())
    return torch.cat(out, 1)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"operator": "gated_delta_rule", "layers": [1]}], ids=str)
def test_decoding_with_a_static_cache(family, settings):
    model, ids = randomize(attach_memory(tiny_model(family), MemoryConfig(**settings))), tokens(2, 16)
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = decoded(model, ids, step)
    with torch.no_grad():
        assert_near(got, model(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("settings", [{}, {"max_self_attn_length": 6, "sink_tokens": 2}], ids=str)
def test_one_pass(settings):
    model, ids = randomize(attach_memory(tiny_model("llama"), MemoryConfig(**settings))), tokens(2, 16)
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(input_ids=ids, use_cache=False).logits
    assert_near(got, want)


def test_decoding_within_a_window():
    """The cache's shape is constant once the window is full: one graph serves all steps."""
    model = randomize(attach_memory(tiny_model("llama"), MemoryConfig(max_self_attn_length=6, sink_tokens=2)))
    ids = tokens(1, 24)
    step = torch.compile(model, backend="aot_eager")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        out = [model(input_ids=ids[:, :12], past_key_values=cache, use_cache=True).logits]
        out += [
            step(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits.clone()
            for i in range(12, 24)
        ]
        assert_near(torch.cat(out, 1), model(input_ids=ids, use_cache=False).logits)


def test_generate_compiles_by_itself():
    model, ids = randomize(attach_memory(tiny_model("llama"))), tokens(2, 9)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)
    want = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), want)
