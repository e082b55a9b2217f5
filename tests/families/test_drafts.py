"""Drafts cost next to no memory: assisted decoding holds about what plain decoding holds, and takes tokens back
exactly."""

import pytest
import torch

from tests.families.models import assert_near, build, randomize, tokens
from tptt import MemoryConfig, attach_memory
from tptt.hf.cache_size import measured_size
from tptt.inference.snapshot import new_cache

PROMPT = 512
NEW = 24
WINDOW = {"max_self_attn_length": 32, "sink_tokens": 2}
SETTINGS = [
    {},
    WINDOW,
    WINDOW | {"operator": "kda", "layers": [1]},
    WINDOW | {"operator": "delta_product", "write_gate": "kv"},
    {"memory_only_layers": "all"},
]


def repeating(length):
    """A prompt that prompt lookup finds drafts in."""
    return tokens(1, length // 8, seed=3).repeat(1, 8)


def peak_and_ids(model, ids, **options):
    """The most bytes that the cache of a generation holds after any of its calls, and what was generated."""
    peaks = [0]

    def note(module, args, kwargs, output):
        peaks.append(measured_size(output.past_key_values).bytes)

    handle = model.register_forward_hook(note, with_kwargs=True)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0} | options
    try:
        out = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, **options)
    finally:
        handle.remove()
    return max(peaks), out


def assert_drafts_are_cheap(model):
    ids = repeating(PROMPT)
    plain, want = peak_and_ids(model, ids)
    for options in ({"prompt_lookup_num_tokens": 8}, {"assistant_model": build("llama", seed=1)}):
        held, got = peak_and_ids(model, ids, **options)
        assert torch.equal(got, want)
        assert held <= 1.1 * plain, f"{held} bytes with {list(options)}, {plain} without"


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_assisted_decoding_holds(settings):
    assert_drafts_are_cheap(randomize(attach_memory(build("llama"), MemoryConfig(**settings))))


def test_what_it_holds_beside_the_bases_own_sliding_window():
    assert_drafts_are_cheap(randomize(attach_memory(build("mistral-sliding"))))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_how_far_back_a_crop_reaches(settings):
    """As far as the logits that were asked for; the states and the next logits are those of what is left."""
    model, ids = randomize(attach_memory(build("llama"), MemoryConfig(**settings))), tokens(1, 60)
    cache = new_cache(model)
    with torch.no_grad():
        want = model(input_ids=torch.cat([ids[:, :47], ids[:, 50:]], 1), use_cache=False).logits[:, -10:]
        cache.activate_past_recording()
        model(input_ids=ids[:, :40], past_key_values=cache, logits_to_keep=4)
        with pytest.raises(RuntimeError, match="only 4 tokens were recorded, 5 cannot be removed"):
            cache.layers[1].crop(-5)
        model(input_ids=ids[:, 40:44], past_key_values=cache, logits_to_keep=9)
        model(input_ids=ids[:, 44:50], past_key_values=cache)
        cache.crop(-3)
        assert_near(model(input_ids=ids[:, 50:], past_key_values=cache).logits, want)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_without_recording_nothing_is_taken_back(settings):
    model, ids = attach_memory(build("llama"), MemoryConfig(**settings)), tokens(1, 20)
    cache = new_cache(model)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        for layer in cache.layers:
            if hasattr(layer, "tokens_read"):
                with pytest.raises(RuntimeError, match=r"call cache.activate_past_recording\(\) before"):
                    layer.crop(-1)
                with pytest.raises(ValueError, match="as a negative number"):
                    layer.crop(1)


def test_a_cache_cut_in_some_of_its_layers_is_refused():
    """transformers crops layer by layer: a layer without a memory is cut before one with a memory says no."""
    model, ids = attach_memory(build("llama"), MemoryConfig(layers=[1])), tokens(1, 20)
    cache = new_cache(model)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        with pytest.raises(RuntimeError, match="a recurrent state cannot be cropped"):
            cache.crop(-3)
        with pytest.raises(ValueError, match="layers hold different numbers of tokens: 17 in layer 0, 20 in layer 1"):
            model(input_ids=ids, past_key_values=cache)
