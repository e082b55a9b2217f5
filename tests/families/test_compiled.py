"""A compiled decoding step, whole graph, gives what the uncompiled one gives."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, randomize, tokens
from tptt import MemoryConfig, attach_memory, detach_memory
from tptt.hf.patch import prepare_cache

# what a compiler warns of while it looks at a call: not of its results
pytestmark = [pytest.mark.filterwarnings(f"ignore:{x}") for x in ("The .grad attribute", "Dynamo detected a call to a")]


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


# ---- the memory is never left out ---------------------------------------------------------------------------------

POSITIONS = torch.cat([torch.arange(7), torch.arange(13)])[None]
WINDOW = {"max_self_attn_length": 6, "feature_width": 32}
BREAKING = [WINDOW, WINDOW | {"operator": "kda"}, WINDOW | {"operator": "delta_rule_gelu"}]
"""Wherever these break the graph, what a hook has noted has to be there behind the break."""


def loss_and_gradients(model, ids, **options):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False, **options).loss
    loss.backward()
    return loss.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if ".liza." in n and p.grad is not None
    }


@pytest.mark.parametrize("options", [{}, {"position_ids": POSITIONS}], ids=["rows", "packed"])
@pytest.mark.parametrize("settings", BREAKING, ids=str)
def test_training_behind_graph_breaks(settings, options):
    """Compiled before its first call."""
    model, ids = randomize(attach_memory(tiny_model("llama"), MemoryConfig(**settings))).train(), tokens(1, 20)
    loss, gradients = loss_and_gradients(torch.compile(model, backend="eager"), ids, **options)
    want, expected = loss_and_gradients(model, ids, **options)
    assert_near(loss, want)
    names = {n.removeprefix("_orig_mod.") for n in gradients}
    assert names == set(expected) and names
    for name, gradient in gradients.items():
        assert_near(gradient, expected[name.removeprefix("_orig_mod.")], 2e-4)


def compiled_whole(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_layers(model):
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(layer, backend="eager")
    return model


def compiled_attention(model):
    for layer in model.model.layers:
        layer.self_attn = torch.compile(layer.self_attn, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_layers, compiled_attention])
def test_attached_to_and_taken_off_a_compiled_model(compiled):
    base, ids, config = tiny_model("llama"), tokens(2, 20), MemoryConfig(**WINDOW)
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        want = randomize(attach_memory(copy.deepcopy(base), config))(input_ids=ids).logits
        model = compiled(base)
        assert_near(model(input_ids=ids).logits, plain)
        randomize(attach_memory(model, config))
        assert_near(model(input_ids=ids).logits, want)
        detach_memory(model)
        assert_near(model(input_ids=ids).logits, plain)


def test_a_memory_that_would_be_left_out_raises():
    """A forward that does not call its output projection, or not with its hooks."""
    model = attach_memory(tiny_model("llama"), MemoryConfig(**WINDOW))
    attention = model.model.layers[0].self_attn
    attention.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="the memory of layer 0 was left out: LlamaAttention did not"),
    ):
        model(input_ids=tokens(1, 9))
