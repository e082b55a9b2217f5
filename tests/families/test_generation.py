"""Checks 2 and 9 of INTEGRATION.md: cached equals uncached in every decoding mode; what cannot work says so."""

import pytest
import torch
from transformers import DynamicCache

from .models import assert_near, build, tokens

WINDOWS = [{}, {"max_self_attn_length": 6}, {"max_self_attn_length": 6, "sink_tokens": 2}]
NEW = 14


def generate(model, ids, **options):
    # an explicit mask: random models generate the pad token too, and generate() would mask it in a prompt
    options = {
        "attention_mask": None if ids is None else torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "pad_token_id": 0,
    } | options
    return model.generate(ids, **options)


@pytest.mark.parametrize("settings", WINDOWS)
def test_prefill_in_pieces_equals_one_pass(attached, settings):
    model, ids = attached(**settings), tokens(2, 30)
    with torch.no_grad():
        want = model(input_ids=ids).logits
        cache, out = None, []
        for a, b in ((0, 11), (11, 12), (12, 13), (13, 27), (27, 30)):
            part = model(input_ids=ids[:, a:b], past_key_values=cache, use_cache=True)
            cache = part.past_key_values
            out.append(part.logits)
    assert_near(torch.cat(out, 1), want)


@pytest.mark.parametrize("settings", WINDOWS)
@pytest.mark.parametrize(
    "mode", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 4}], ids=str
)
def test_decoding_modes_equal_recomputation(converted, settings, mode):
    model, ids = converted(**settings), tokens(1, 13).repeat(1, 2)
    uncached = {k: v for k, v in mode.items() if k == "num_beams"}
    want = generate(model, ids, use_cache=False, **uncached)
    assert torch.equal(generate(model, ids, **mode), want)
    assert want.shape[1] == 26 + NEW


@pytest.mark.parametrize("settings", WINDOWS)
def test_assisted_decoding_equals_greedy(converted, family, settings):
    model, ids = converted(**settings), tokens(1, 20)
    assistant = build(family, seed=1)
    assert torch.equal(generate(model, ids, assistant_model=assistant), generate(model, ids))


def test_a_converted_model_assists(converted, family):
    model, ids = build(family, seed=1), tokens(1, 20)
    assistant = converted(max_self_attn_length=6)
    assert torch.equal(generate(model, ids, assistant_model=assistant), generate(model, ids))


def test_embeddings_in_place_of_ids(converted):
    model, ids = converted(max_self_attn_length=6), tokens(2, 20)
    embeds, mask = model.get_input_embeddings()(ids), torch.ones_like(ids)
    mask[0, :5] = 0
    want = generate(model, ids, attention_mask=mask)[:, 20:]
    assert torch.equal(generate(model, None, inputs_embeds=embeds, attention_mask=mask), want)


@pytest.mark.parametrize("settings", [WINDOWS[0], WINDOWS[2]])
def test_left_padded_batch_equals_single_rows(converted, settings):
    model = converted(**settings)
    long, short = tokens(1, 17), tokens(1, 9, seed=3)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 8, dtype=torch.long), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :8] = 0
    got = generate(model, batch, attention_mask=mask)
    for row, alone in zip(got, (long, short), strict=True):
        assert torch.equal(row[-NEW:], generate(model, alone)[0, -NEW:])


def test_static_cache_equals_dynamic(converted):
    model = converted()
    batch = torch.cat([tokens(1, 12), torch.cat([torch.zeros(1, 5, dtype=torch.long), tokens(1, 7, seed=4)], 1)])
    mask = (batch != 0).long()
    want = generate(model, batch, attention_mask=mask)
    got = generate(model, batch, attention_mask=mask, cache_implementation="static", disable_compile=True)
    assert torch.equal(got, want)


@pytest.mark.parametrize("settings", WINDOWS)
def test_continuing_from_a_returned_cache(converted, settings):
    model, ids = converted(**settings), tokens(1, 12)
    first = generate(model, ids, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, tokens(1, 5, seed=7)], 1)
    got = generate(model, longer, past_key_values=first.past_key_values)
    assert torch.equal(got, generate(model, longer))


@pytest.mark.parametrize("sinks", [0, 2])
def test_the_cache_is_bounded(converted, sinks):
    model = converted(max_self_attn_length=6, sink_tokens=sinks)
    out = generate(model, tokens(1, 50), return_dict_in_generate=True)
    for layer in out.past_key_values.layers:
        assert layer.keys.shape[2] + sinks <= 6 + sinks
        assert layer.state is not None and layer.get_seq_length() == 50 + NEW - 1


def test_errors_before_computing(converted):
    model, ids = converted(max_self_attn_length=6), tokens(1, 12)
    with pytest.raises(ValueError, match="static cache"):
        generate(model, ids, cache_implementation="static")
    foreign = DynamicCache()
    heads = model.config.text_config.num_attention_heads
    foreign.update(torch.zeros(1, heads, 3, 8), torch.zeros(1, heads, 3, 8), 0)
    with pytest.raises(ValueError, match="has not read"):
        model(input_ids=ids, past_key_values=foreign)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-2)


def test_a_cache_of_another_window_is_refused(attached):
    ids, caches = tokens(1, 12), []
    for settings in WINDOWS:
        with torch.no_grad():
            caches.append(attached(**settings)(input_ids=ids, use_cache=True).past_key_values)
    model = attached(**WINDOWS[1])
    with torch.no_grad():
        model(input_ids=ids, past_key_values=caches[1])
        for cache in (caches[0], caches[2]):
            with pytest.raises(ValueError, match="was made under max_self_attn_length=(None|6)"):
                model(input_ids=ids, past_key_values=cache)


@pytest.mark.parametrize("settings", WINDOWS)
def test_crop_rolls_the_memory_back(attached, settings):
    model, ids = attached(**settings), tokens(2, 20)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :9], use_cache=True).past_key_values
        cache.activate_past_recording()
        model(input_ids=tokens(2, 5, seed=8), past_key_values=cache)
        cache.crop(-5)
        model(input_ids=torch.cat([ids[:, 9:12], tokens(2, 4, seed=9)], 1), past_key_values=cache)
        cache.crop(-4)
        got = model(input_ids=ids[:, 12:], past_key_values=cache).logits
        assert_near(got, model(input_ids=ids).logits[:, 12:])
