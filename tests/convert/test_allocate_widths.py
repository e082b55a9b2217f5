"""Memories as wide as what their layers need from far back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tiny import randomize, tiny_model
from tests.families.models import tokens
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory
from tptt.convert import allocate_widths
from tptt.convert.widths import MOST, shares
from tptt.evaluation import mag_weight
from tptt.evaluation.kl import kl_from_base
from tptt.hf import as_base, memories, softmax_as

LENGTH, WINDOW = 40, 8
LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a random Llama of four layers, of which the third attends most and the first not at all."""
    torch.manual_seed(0)
    model = tiny_model("llama", num_hidden_layers=4)
    with torch.no_grad():
        for layer, strength in zip(model.model.layers, (0.0, 0.3, 1.0, 0.3), strict=True):
            layer.self_attn.o_proj.weight.mul_(strength)
    path = tmp_path_factory.mktemp("base")
    model.save_pretrained(path)
    return path


def converted(base, **options):
    config = {"lora_config": LORA, "max_self_attn_length": WINDOW, "feature_width": 512} | options
    return TpttModel(TpttConfig(base_model_name=str(base), **config))


def batches(length=LENGTH):
    return [{"input_ids": tokens(2, length, seed)} for seed in range(2)]


def widths_of(model):
    return tuple(m.key_features.width for m in memories(model))


def test_widths_follow_what_a_window_in_each_layer_costs(base):
    model = converted(base)
    lost = [0.0] * 4
    with torch.no_grad(), mag_weight(model, 0.0):
        for batch in batches():
            with as_base(model):
                want = model(**batch, use_cache=False).logits
            for i in range(4):
                with softmax_as(model, [j for j in range(4) if j != i]):
                    lost[i] += float(kl_from_base(model(**batch, use_cache=False).logits, want))
    found = allocate_widths(model, batches())
    assert found == widths_of(model) == tuple(model.config.feature_width) and sum(found) == 4 * 512
    assert found[0] == 32 and max(found) == found[2]
    for width, part in zip(found, lost, strict=True):
        assert abs((width - 32) - part / sum(lost) * (4 * 512 - 4 * 32)) <= 32


def test_what_was_spread_is_saved_and_read_again(base, tmp_path):
    model = converted(base)
    allocate_widths(model, batches())
    randomize(model).save_pretrained(tmp_path)
    again = TpttModel.from_pretrained(tmp_path)
    assert widths_of(again) == widths_of(model) and len(set(widths_of(again))) > 1
    ids = tokens(2, LENGTH)
    options = {"max_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        cached, whole = (again.generate(ids, use_cache=c, **options) for c in (True, False))
    assert torch.equal(cached, whole)


@pytest.mark.parametrize("options", [{"feature_width": [64, 32, 64, 128]}, {"feature_map": "silu"}, {"max_self_attn_length": None}], ids=str)  # fmt: skip
def test_nothing_is_spread_where_widths_are_named_or_mean_nothing(base, options):
    model = converted(base, **options)
    before = memories(model)
    assert allocate_widths(model, batches()) == widths_of(model)
    assert all(a is b for a, b in zip(before, memories(model), strict=True))


def test_rows_within_the_window_give_equal_widths(base):
    model = converted(base)
    assert allocate_widths(model, batches(WINDOW)) == (512,) * 4 == widths_of(model)


@pytest.mark.parametrize("options", [{"lora_config": None}, {"memory_only_layers": [1]}, {"memory_only_layers": "all"}, {"layers": [1, 2]}], ids=str)  # fmt: skip
def test_every_kind_of_model_is_spread(base, options):
    model = converted(base, **options)
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    found = allocate_widths(model, batches())
    assert found == widths_of(model) and sum(found) <= 512 * len(found) and len(set(found)) > 1
    assert trains == [n for n, p in model.named_parameters() if p.requires_grad]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(1, 2048))
def test_shares(weights, half):
    mean = 2 * half
    found = shares(weights, mean)
    unit = max(2, min(64, mean // 16 // 2 * 2))
    assert len(found) == len(weights) and all(w >= min(unit, mean) and w % 2 == 0 for w in found)
    assert mean * len(found) - unit < sum(found) <= mean * len(found)
    assert max(found) <= MOST * mean + unit
    for a, x in zip(weights, found, strict=True):
        assert all(x <= y + unit for b, y in zip(weights, found, strict=True) if a < b)
    assert shares([0.0] * len(weights), mean) == (mean,) * len(weights)


@pytest.mark.parametrize("tokens_more", [1, 3])
def test_a_cache_of_other_widths_is_refused(base, tokens_more):
    one, other = (converted(base, feature_width=[64, 64, w, 64]).eval() for w in (64, 128))
    ids = tokens(1, LENGTH)
    with torch.no_grad():
        cache = one(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"shape \[1, 2, 128, .*got \[1, 2, 64"):
            other(ids[:, :tokens_more], past_key_values=cache)


def test_a_width_for_each_layer(base):
    model = converted(base, feature_width=[16, 32, 48, 64])
    assert widths_of(model) == (16, 32, 48, 64) and [m.config.feature_width for m in memories(model)] == [
        16,
        32,
        48,
        64,
    ]
    with pytest.raises(ValueError, match="feature_width gives 2 widths to 4 layers"):
        converted(base, feature_width=[16, 32])
    with pytest.raises(ValueError, match="feature_width gives 4 widths to 2 layers"):
        attach_memory(tiny_model("llama"), MemoryConfig(feature_width=[16, 32, 48, 64]))
    for wrong in ([], [16, 3], [16, True], "wide"):
        with pytest.raises(ValueError, match="feature_width"):
            MemoryConfig(feature_width=wrong)
