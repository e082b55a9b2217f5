"""Where feature maps begin: at the base's own mean scores beyond the window, in families that turn in different
ways."""

import sys

import pytest
import torch
from transformers import AttentionInterface

from benchmarks.tiny import randomize, tiny_model
from tptt import MemoryConfig, attach_memory, calibrate, set_mag_weight
from tptt.hf import memories
from tptt.hf.far_rotary import rotary_turns
from tptt.hf.slots import patched_attention, slot_of
from tptt.hf.teacher import projections
from tptt.hf.window_attention import WINDOWED

NEAR, FAR = 6, 40
TURNED = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "olmo2",
    "gemma3_text",
    "phi",
    "phi3",
    "gpt_neox",
    "stablelm",
    "cohere",
    "glm",
    "granite",
    "olmoe",
    "mixtral",
    "ernie4_5",
    "helium",
]


@pytest.fixture
def scores(monkeypatch):
    """What the base's attention function is given, call by call: within a window that is ours, by blocks."""
    seen = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        seen.append((query, key))
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return value.transpose(1, 2).contiguous(), None  # all values are the same

    for name in ("sdpa", WINDOWED):
        monkeypatch.setitem(AttentionInterface._global_mapping, name, attention)
    return seen


def features(model):
    return [(m.query_features.weight, m.key_features.weight) for m in memories(model)]


@pytest.mark.parametrize("family", TURNED)
def test_they_are_the_mean_over_distances_of_the_scores_that_the_base_computes(family, scores):
    """One token again and again: a score then depends on the distance alone."""
    torch.manual_seed(0)
    model = randomize(tiny_model(family)).eval()
    ids = torch.full((1, FAR), 3)
    attach_memory(model, MemoryConfig(feature_map="sign_split", max_self_attn_length=NEAR))  # has all rows of the maps
    set_mag_weight(model, 0.0)  # or else a later layer would see one token in many surroundings
    calibrate(model, ids, length=FAR)
    raw = {}
    for module in patched_attention(model):
        slot_of(module).records["projections"] = raw[module] = []
    scores.clear()
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    checked = 0
    for calls, (query, key), (to_q, to_k) in zip(raw.values(), scores, features(model), strict=True):
        q, k = (x[0, -1].float() for x in calls[0])
        q = torch.einsum("hed,hd->he", to_q, q)
        groups = q.shape[0] // k.shape[0]
        to_k, k = (x.repeat_interleave(groups, 0) for x in (to_k, k))
        k = torch.einsum("hed,hd->he", to_k, k)
        ours = (q * k).sum(-1)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        theirs = (query[0, :, -1:] * key[0, :, : FAR - NEAR]).sum(-1).mean(-1)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        checked += 1
    assert checked == len(memories(model))


def remembered(family, feature_map="fourier", states="query_head", **changes):
    torch.manual_seed(0)
    model = attach_memory(
        tiny_model(family, **changes), MemoryConfig(feature_map=feature_map, max_self_attn_length=NEAR, states=states)
    )
    return model, torch.arange(48).view(2, 24) % 50 + 2


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "deepseek_v2"])
def test_where_no_whole_heads_turn_it_is_the_product_of_queries_and_keys(family):
    model, ids = remembered(family, "sign_split")
    calibrate(model, ids)
    for to_q, to_k in features(model):
        torch.testing.assert_close(to_q.mT @ to_k, torch.eye(to_q.shape[-1]).expand_as(to_q), rtol=1e-3, atol=1e-4)


def test_a_layer_without_positions_begins_at_the_product_too():
    model, ids = remembered("smollm3", "sign_split", num_hidden_layers=2, no_rope_layers=[1, 0])
    calibrate(model, ids)
    products = [q.mT @ k.repeat_interleave(len(q) // len(k), 0) for q, k in features(model)]
    unit = torch.eye(products[0].shape[-1]).expand_as(products[0])
    assert [torch.allclose(x, unit, atol=1e-4) for x in products] == [False, True]


@pytest.mark.parametrize("states", ["query_head", "kv_head"])
def test_queries_and_keys_vary_equally_much_and_independently(states):
    model, ids = remembered("llama", "sign_split", states=states)
    ids = torch.randint(2, 60, (8, 64), generator=torch.Generator().manual_seed(0))
    calibrate(model, ids)
    set_mag_weight(model, 0.0)
    with projections(model) as projected, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for (q, k), memory in zip(projected, memories(model), strict=True):
        k = k.repeat_interleave(memory.num_states // memory.num_key_value_heads, 2)
        q, k = memory.query_features.mapped(q), memory.key_features.mapped(k)
        q = q.unflatten(2, (memory.num_states, -1))
        for head in range(memory.num_states):
            of_q = torch.stack([q[:, :, head, i].flatten(0, 1).T.cov(correction=0) for i in range(q.shape[3])]).mean(0)
            of_k = k[:, :, head].flatten(0, 1).T.cov(correction=0)
            scale = of_k.diagonal().max()
            torch.testing.assert_close(of_q / scale, of_k / scale, rtol=0, atol=0.01)
            assert (of_k - of_k.diagonal().diag()).abs().max() < 0.01 * scale
            assert torch.equal(of_k.diagonal().argsort(descending=True)[:3], torch.arange(3))


@pytest.mark.parametrize("feature_map", ["fourier", "sign_split"])
def test_measuring_again_changes_nothing_and_leaves_trained_maps_alone(feature_map):
    model, ids = remembered("llama", feature_map)
    calibrate(model, ids)
    once = [w.clone() for pair in features(model) for w in pair]
    calibrate(model, ids)
    for was, (now, _) in zip(once[::2], features(model), strict=True):
        torch.testing.assert_close(was, now)
    with torch.no_grad():
        for query, _ in features(model):
            query += 0.01 * torch.randn(query.shape)
    trained = [q.clone() for q, _ in features(model)]
    calibrate(model, ids, length=400)
    for was, (now, _) in zip(trained, features(model), strict=True):
        assert torch.equal(was, now)


def test_far_ends_at_the_length_asked_for():
    model, ids = remembered("llama")
    calibrate(model, ids, length=8 * NEAR)
    default = features(model)[0][0].clone()
    calibrate(model, ids)
    torch.testing.assert_close(default, features(model)[0][0])
    calibrate(model, ids, length=100 * NEAR)
    assert not torch.allclose(default, features(model)[0][0], atol=1e-3)


def test_the_base_turns_as_before_when_it_has_been_watched():
    model, ids = remembered("llama")
    module = patched_attention(model)[0]
    place = sys.modules[type(module).__module__]
    before = place.apply_rotary_pos_emb
    with pytest.raises(RuntimeError, match="stop"), rotary_turns(model):
        assert place.apply_rotary_pos_emb is not before
        raise RuntimeError("stop")
    assert place.apply_rotary_pos_emb is before
    assert not module._forward_pre_hooks or len(module._forward_pre_hooks) == 1
