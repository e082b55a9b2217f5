"""Every decoding mode gives what recomputation gives; on a base with a memory attached, without the wrapper."""

import copy

import pytest
import torch
from transformers import DynamicCache

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, randomize, tokens
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory

WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}
SETTINGS = [{}, WINDOW, WINDOW | {"layers": [1]}, {"memory_only_layers": [0]}]
FAMILIES = ["llama", "gemma2", "gpt_neox", "deepseek_v3", "qwen3_moe", "opt"]
NEW = 10
MODES = {
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "several answers": {"num_return_sequences": 3, "do_sample": True},
    "constrained": {"prefix_allowed_tokens_fn": lambda row, ids: [3 + (int(ids[-1]) * 7 + i) % 50 for i in range(9)]},
    "no repeats": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "guided": {"guidance_scale": 1.5},
}
CACHED = {
    "chunked prefill": {"prefill_chunk_size": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=SETTINGS, ids=str)
def model(request, family):
    return randomize(attach_memory(tiny_model(family), MemoryConfig(**request.param)))


def generate(model, ids, **options):
    torch.manual_seed(5)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0} | options
    return model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, **options)


@pytest.mark.parametrize("mode", MODES)
def test_modes(model, mode):
    ids = tokens(2, 13)
    want = generate(model, ids, use_cache=False, **MODES[mode])
    assert torch.equal(generate(model, ids, **MODES[mode]), want)


@pytest.mark.parametrize("mode", CACHED)
def test_modes_that_need_a_cache(model, mode):
    ids = tokens(1, 8).repeat(1, 2)
    assert torch.equal(generate(model, ids, **CACHED[mode]), generate(model, ids, use_cache=False))


def test_assisted(model, family):
    """By a plain model, and of a plain model by this one: rejected tokens leave no trace in the state."""
    ids, plain = tokens(1, 15), tiny_model(family, seed=1)
    assert torch.equal(generate(model, ids, assistant_model=plain), generate(model, ids, use_cache=False))
    assert torch.equal(generate(plain, ids, assistant_model=model), generate(plain, ids))
    close_to_it = randomize(copy.deepcopy(model), seed=1)  # so that some are accepted
    assert torch.equal(generate(model, ids, assistant_model=close_to_it), generate(model, ids, use_cache=False))


@pytest.mark.parametrize("settings", SETTINGS + [{"layers": [0]}], ids=str)
def test_early_exit(settings):
    """The model's own first layer is its assistant, with a cache of that layer alone."""
    ids, model = tokens(1, 15), randomize(attach_memory(tiny_model("llama"), MemoryConfig(**settings)))
    want = generate(model, ids, use_cache=False)
    assert torch.equal(generate(model, ids, assistant_early_exit=1), want)
    assert torch.equal(generate(model, ids), want)


@pytest.mark.parametrize("settings", [{}, {"layers": [1]}], ids=str)
def test_static_cache(family, settings):
    model = randomize(attach_memory(tiny_model(family), MemoryConfig(**settings)))
    ids = tokens(2, 13)
    want = generate(model, ids, use_cache=False)
    assert torch.equal(generate(model, ids, cache_implementation="static", disable_compile=True), want)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], 1)
    mask = (padded != 0).long()
    got = generate(model, padded, attention_mask=mask, cache_implementation="static", disable_compile=True)
    assert torch.equal(got[:, -NEW:], want[:, -NEW:])


@pytest.mark.parametrize("settings", [{}, WINDOW], ids=str)
def test_offloading_moves_what_grows_only(settings):
    """transformers offloads a layer from within its attention, before the memory is read: the state has to stay."""
    model, ids = randomize(attach_memory(tiny_model("llama"), MemoryConfig(**settings))), tokens(2, 20)
    with torch.no_grad():
        want, cache = model(input_ids=ids).logits, model(input_ids=ids[:, :7], use_cache=True).past_key_values
        states = [layer.state for layer in cache.layers]
        for i in range(2):
            cache.offload(i, only_non_sliding=False)
        assert all(layer.state is state for layer, state in zip(cache.layers, states, strict=True))
        assert_near(model(input_ids=ids[:, 7:], past_key_values=cache).logits, want[:, 7:])


def test_a_mask_of_the_whole_conversation_and_new_tokens_only(model):
    ids, more = tokens(1, 14), tokens(1, 5, seed=2)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    both = torch.cat([ids, more], 1)
    got = generate(model, more, attention_mask=torch.ones_like(both), past_key_values=cache)
    assert torch.equal(got[:, 5:], generate(model, both, use_cache=False)[:, 19:])


# ---- what cannot work says so before it computes -------------------------------------------------------------------


@pytest.fixture
def wrapped(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    return lambda **settings: TpttModel(TpttConfig(base_model_name=tmp_path / "base", **settings)).eval()


def never(model):
    """No layer of ``model`` may run from here on."""

    def fail(*args, **kwargs):
        raise AssertionError("it computed")

    for layer in model.modules():
        if type(layer).__name__ == "LlamaDecoderLayer":
            layer.forward = fail
    return model


def test_refusals(wrapped):
    ids, options = tokens(1, 6), {"max_new_tokens": 2}
    bounded = never(wrapped(**WINDOW))
    with pytest.raises(ValueError, match="static cache cannot be bounded by max_self_attn_length"):
        bounded.generate(ids, cache_implementation="static", **options)
    foreign = DynamicCache()
    foreign.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    with pytest.raises(ValueError, match="3 tokens that this memory has not read"):
        bounded.generate(torch.cat([ids, ids], 1), past_key_values=foreign, **options)
    for call in (bounded.generate_batch, bounded.init_continuous_batching):
        with pytest.raises(ValueError, match="continuous batching keeps a paged cache"):
            call([[1, 2, 3]])
    other = wrapped()(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="was made under max_self_attn_length=None"):
        bounded.generate(torch.cat([ids, ids], 1), past_key_values=other, **options)
    alone = never(wrapped(memory_only_layers="all"))
    with pytest.raises(ValueError, match="holds keys and values, unlike the model"):
        alone.generate(torch.cat([ids, ids], 1), past_key_values=other, **options)
    with pytest.raises(ValueError, match="Contrastive Search requires"):  # transformers has it no longer: it is a repo
        bounded.generate(ids, penalty_alpha=0.6, top_k=4, **options)


def test_flash_attention_is_refused_with_a_window():
    model = attach_memory(tiny_model("llama"), MemoryConfig(**WINDOW))
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="needs attn_implementation 'sdpa' or 'eager', not 'flash_attention_2'"):
        model.model.layers[0].self_attn(torch.zeros(1, 3, 32), (torch.zeros(1, 3, 8),) * 2, None)
