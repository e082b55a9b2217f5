"""Masks of every form that transformers takes are honoured, by the oracle of each sequence alone, or refused."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import StaticCache

from tests.families.models import assert_near, build, randomize, tokens
from tptt import MemoryConfig, attach_memory
from tptt.hf.masks import before_body
from tptt.hf.prepared_masks import token_mask, visible_keys
from tptt.inference.snapshot import new_cache

T = 20
SETTINGS = [{}, {"max_self_attn_length": 6, "sink_tokens": 2}, {"operator": "delta_product", "write_gate": "kv"}]
PADDING = {
    "none": [range(0), range(0)],
    "left": [range(7), range(0)],
    "right": [range(14, T), range(3, T)],
    "middle": [range(5, 9), range(0)],
    "both sides": [[0, 1, 18, 19], range(11)],
}


@pytest.fixture(params=SETTINGS, ids=str)
def settings(request):
    return request.param


def skip_gaps(settings, kind):
    if kind == "middle" and "max_self_attn_length" in settings:
        pytest.skip(
            "a window counts places in the row, as transformers' sliding windows do: a gap is wider than no gap"
        )


def model_of(settings, attention="sdpa", family="llama"):
    return randomize(attach_memory(build(family, attention), MemoryConfig(**settings)))


def padding_mask(kind):
    mask = torch.ones(2, T, dtype=torch.bool)
    for row, places in enumerate(PADDING[kind]):
        mask[row, list(places)] = False
    return mask


def positions_of(mask):
    return (mask.cumsum(1) - 1).clamp_min(0)


def causal(mask):
    """[B, 1, T, T] bool: causal order among the real tokens; a padded query sees itself."""
    at = torch.arange(mask.shape[1])
    return ((at[None] <= at[:, None]) & mask[:, None, :] | (at[None] == at[:, None]) & ~mask[:, None, :])[:, None]


def additive(visible):
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


def assert_as_alone(model, ids, mask, **options):
    """The logits of the real tokens are those of each row's real tokens read alone."""
    with torch.no_grad():
        got = model(input_ids=ids, position_ids=positions_of(mask), **options).logits
        for row in range(len(ids)):
            alone = model(input_ids=ids[row, mask[row]][None], use_cache=False).logits[0]
            assert_near(got[row, mask[row]], alone)


@pytest.mark.parametrize("kind", PADDING)
@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.int32, torch.uint8, torch.float32])
def test_two_dimensions(settings, kind, dtype):
    skip_gaps(settings, kind)
    mask = padding_mask(kind)
    assert_as_alone(model_of(settings), tokens(2, T), mask, attention_mask=mask.to(dtype))


@pytest.mark.parametrize("kind", PADDING)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cached", [False, True])
def test_four_dimensions(settings, kind, attention, cached):
    """Additive, or bool where every query sees something: a row of False alone gives NaN in sdpa."""
    skip_gaps(settings, kind)
    mask, model = padding_mask(kind), model_of(settings, attention)
    visible = causal(torch.ones_like(mask)) & mask[:, None, None]
    forms = [visible, additive(visible)] if visible.any(-1).all() else [additive(visible)]
    for form in forms:
        if attention == "sdpa" or form.dtype != torch.bool:
            assert_as_alone(model, tokens(2, T), mask, attention_mask=form, use_cache=cached)


def test_by_kind_of_layer(settings):
    model, mask = model_of(settings, family="mistral-sliding"), padding_mask("right")
    visible = causal(torch.ones_like(mask)) & mask[:, None, None]
    for masks in ({"full_attention": visible, "sliding_attention": None}, {"full_attention": None}):
        names, body = ("input_ids", "attention_mask", "position_ids"), model.model
        given = {"input_ids": tokens(2, T), "attention_mask": masks}
        _, kwargs = before_body(names, MemoryConfig(), [], True, body, (), given)
        want = mask if masks["full_attention"] is not None else None
        got = kwargs["memory_mask"]
        assert got is None if want is None else torch.equal(got, want)


def test_block_masks(settings):
    """What flex attention takes; what it says is read off the function that made it."""
    mask = padding_mask("right")

    def seen(row, head, query, key):
        return (key <= query) & mask[row, key]

    block = create_block_mask(seen, 2, None, T, T, device="cpu")
    found = token_mask(visible_keys(block, T, T), 0, None, False)
    assert torch.equal(found.real, mask) and found.sequences is None and not found.looks_ahead


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_by_a_mask(settings, attention):
    lengths, model = (5, 9, 6), model_of(settings, attention)
    ids = tokens(1, T)
    which = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    visible = (causal(torch.ones(1, T, dtype=torch.bool))[0, 0] & (which[:, None] == which[None]))[None, None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        want = torch.cat([model(input_ids=x, use_cache=False).logits for x in ids.split(lengths, 1)], 1)
        got = model(input_ids=ids, attention_mask=additive(visible), position_ids=positions)
        assert_near(got.logits, want)
        assert got.past_key_values is None
        with pytest.raises(ValueError, match="packed rows cannot go on from a cache"):
            model(input_ids=ids, attention_mask=additive(visible), past_key_values=new_cache(model))


@pytest.mark.parametrize("kind", ["left", "none", "middle"])
def test_with_a_cache(settings, kind):
    """2-D masks of past and new tokens; a static cache's as well."""
    skip_gaps(settings, kind)
    model, mask, ids = model_of(settings), padding_mask(kind), tokens(2, T)
    caches = [new_cache(model)]
    if not settings.get("max_self_attn_length"):
        caches.append(StaticCache(config=model.config, max_cache_len=32))
    for cache in caches:
        got, start = [], 0
        for end in (12, 13, T):
            options = {"attention_mask": mask[:, :end], "position_ids": positions_of(mask)[:, start:end]}
            with torch.no_grad():
                got.append(model(input_ids=ids[:, start:end], past_key_values=cache, **options).logits)
            start = end
        logits = torch.cat(got, 1)
        with torch.no_grad():
            for row in range(2):
                want = model(input_ids=ids[row, mask[row]][None], use_cache=False).logits[0]
                assert_near(logits[row, mask[row]], want)


@pytest.mark.parametrize("width", [5, 21, 30])
def test_a_mask_that_does_not_cover_past_and_new_tokens_is_refused(settings, width):
    model = model_of(settings)
    cache = new_cache(model)
    with torch.no_grad():
        model(input_ids=tokens(1, T), past_key_values=cache)
        with pytest.raises(ValueError, match=f"1, {width}.* must cover the 20 tokens in the cache and the 5 new ones"):
            model(input_ids=tokens(1, 5), attention_mask=torch.ones(1, width), past_key_values=cache)
        with pytest.raises(
            ValueError, match="must cover the 0 tokens in the cache and the 5 new ones of each of 1 rows"
        ):
            model(input_ids=tokens(1, 5), attention_mask=torch.ones(2, 5))


def refused():
    full = causal(torch.ones(1, T, dtype=torch.bool))
    hidden = full.clone()
    hidden[..., 10:, 3] = False  # forgets one token
    band = full & (torch.arange(T)[:, None] - torch.arange(T) < 5)
    heads = full.repeat(1, 4, 1, 1)
    heads[:, 1, 7, 2] = False
    return {
        "a token hidden later": (hidden, "hides earlier tokens of a sequence from later ones"),
        "a band": (band, "hides earlier tokens of a sequence from later ones"),
        "other heads": (heads, "differs from head to head"),
        "biases": (additive(full) - 0.5, "holds biases"),
    }


@pytest.mark.parametrize("kind", ["a token hidden later", "a band", "other heads", "biases"])
def test_what_a_memory_would_show_all_the_same_is_refused(settings, kind):
    mask, message = refused()[kind]
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model_of(settings)(input_ids=tokens(1, T), attention_mask=mask)


def test_later_tokens_are_for_the_softmax_alone():
    """The parts of a picture see each other; a memory is read from left to right, and a window would hide them."""
    visible = causal(torch.ones(1, T, dtype=torch.bool))
    visible[..., 4:8, 4:8] = True
    ids = tokens(1, T)
    with torch.no_grad():
        base = build("llama")
        want = base(input_ids=ids, attention_mask=visible).logits
        model = attach_memory(base, MemoryConfig(mag_weight=0.0, mix_gate="none"))
        assert torch.equal(model(input_ids=ids, attention_mask=visible).logits, want)
        windowed = model_of({"max_self_attn_length": 6})
        with pytest.raises(ValueError, match="shows later tokens to earlier ones, which the window"):
            windowed(input_ids=ids, attention_mask=visible)


def test_what_is_no_mask(settings):
    for wrong in ([[1] * T], torch.ones(T), "all"):
        with pytest.raises(TypeError, match="attention_mask must be 2-D"):
            model_of(settings)(input_ids=tokens(1, T), attention_mask=wrong)
