"""Memories as wide as what their layers need from far back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from benchmarks.tiny import randomize, tiny_model
from benchmarks.widths import measure, stdlib_rows
from tests.families.models import tokens
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory
from tptt.assets import BASE
from tptt.convert import allocate_widths, windowed
from tptt.convert.widths import MOST, dependence, shares
from tptt.hf import memories, memory_layers

LENGTH, WINDOW = 40, 8
LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a random Llama of four layers, of which the third attends most and the first not at all."""
    torch.manual_seed(0)
    model = tiny_model("llama", num_hidden_layers=4)
    with torch.no_grad():
        for layer, strength in zip(model.model.layers, (0.0, 0.3, 1.0, 0.5), strict=True):
            layer.self_attn.o_proj.weight.mul_(strength)
    path = tmp_path_factory.mktemp("base")
    model.save_pretrained(path)
    return path


@pytest.fixture
def loaded(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


CONFIG = MemoryConfig(max_self_attn_length=WINDOW, feature_width=512)


def converted(base, **options):
    config = {"lora_config": LORA, "max_self_attn_length": WINDOW, "feature_width": 512} | options
    return TpttModel(TpttConfig(base_model_name=str(base), **config))


def batches(length=LENGTH):
    return [{"input_ids": tokens(2, length, seed)} for seed in range(2)]


def widths_of(model):
    return tuple(m.key_features.width for m in memories(model))


def window_in(layer):
    """A mask of our own in one layer's attention."""
    behind = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    mask = ((behind >= 0) & (behind < WINDOW))[None, None]
    change = lambda module, args, kwargs: (args, kwargs | {"attention_mask": mask})  # noqa: E731
    return layer.self_attn.register_forward_pre_hook(change, with_kwargs=True)


@torch.no_grad()
def divergence_of_windows(model):
    """KL(base || base with a window in one layer alone) in nats per token, for each layer."""
    lost = [0.0] * len(model.model.layers)
    for batch in batches():
        want = model(**batch, use_cache=False).logits.softmax(-1)
        for i, layer in enumerate(model.model.layers):
            handle = window_in(layer)
            got = model(**batch, use_cache=False).logits.softmax(-1)
            handle.remove()
            lost[i] += float((want * (want / got).log()).sum() / batch["input_ids"].numel() / 2)
    return lost


@torch.no_grad()
def changes_of_outputs(model):
    """|change|^2 / |output|^2 of each layer's output under a window in it, mean over tokens."""
    found, outputs = [0.0] * len(model.model.layers), {}
    keep = lambda i: lambda module, args, output: outputs.__setitem__(i, output)  # noqa: E731
    for batch in batches():
        handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(model.model.layers)]
        model(**batch, use_cache=False)
        whole = dict(outputs)
        for i, layer in enumerate(model.model.layers):
            handle = window_in(layer)
            model(**batch, use_cache=False)  # what comes before the layer is the same
            handle.remove()
            change = (outputs[i] - whole[i]).pow(2).sum(-1) / whole[i].pow(2).sum(-1)
            found[i] += float(change.mean() / 2)
        for handle in handles:
            handle.remove()
    return found


def test_a_layer_depends_on_far_tokens_as_its_output_under_a_window_says(loaded):
    want = changes_of_outputs(loaded)
    with windowed(loaded, CONFIG):
        found = dependence(loaded, batches())
    assert list(found) == [0, 1, 2, 3]
    assert list(found.values()) == pytest.approx(want, rel=1e-4, abs=1e-9) and found[0] == 0


def test_the_measure_ranks_layers_as_the_divergence_from_the_base_does(loaded):
    with windowed(loaded, CONFIG):
        found = list(dependence(loaded, batches()).values())
    lost = divergence_of_windows(loaded)
    order = sorted(range(4), key=lost.__getitem__)
    assert sorted(range(4), key=found.__getitem__) == order and len({round(x, 6) for x in lost}) == 4


def test_the_embedded_base_gets_the_widths_that_the_divergence_gives_it():
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    (measured,) = measure(base, stdlib_rows(2, 256), windows=(32,))
    assert measured.rank_correlation == 1
    for ours, theirs in zip(measured.widths, measured.widths_by_divergence, strict=True):
        assert abs(ours - theirs) <= 0.05 * sum(measured.widths)


def test_widths_are_in_proportion(loaded):
    found = allocate_widths(loaded, CONFIG, batches())
    with windowed(loaded, CONFIG):
        wanted = dependence(loaded, batches())
    assert list(found) == [0, 1, 2, 3] and sum(found.values()) == 4 * 512
    assert found[0] == 32 and max(found, key=found.get) == 2
    for layer, width in found.items():
        assert abs((width - 32) - wanted[layer] / sum(wanted.values()) * (4 * 512 - 4 * 32)) <= 32


def test_measuring_takes_two_passes_and_leaves_the_base_as_it_was(loaded):
    loaded.train()
    loaded.model.layers[1].eval()
    modes = [m.training for m in loaded.modules()]
    trains = [p.requires_grad for p in loaded.parameters()]
    state = {k: v.clone() for k, v in loaded.state_dict().items()}
    hooks = lambda: [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.modules()]  # noqa: E731
    before, calls = hooks(), []
    handles = [
        x.self_attn.register_forward_hook(lambda module, args, output, i=i: calls.append(i))
        for i, x in enumerate(loaded.model.layers)
    ]
    allocate_widths(loaded, CONFIG, batches())
    for handle in handles:
        handle.remove()
    assert sorted(calls) == sorted([0, 1, 2, 3] * 2 * 2), "a pass and each layer again, for two batches"
    assert [m.training for m in loaded.modules()] == modes and hooks() == before
    assert [p.requires_grad for p in loaded.parameters()] == trains and not memory_layers(loaded)
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items()) and len(state) == len(
        loaded.state_dict()
    )


@pytest.mark.parametrize(
    "options", [{"feature_width": [64, 32, 64, 128]}, {"feature_map": "silu"}, {"max_self_attn_length": None}], ids=str
)
def test_nothing_is_allocated_where_widths_are_named_or_mean_nothing(loaded, options):
    assert allocate_widths(loaded, replace(CONFIG, **options), batches()) is None


def test_rows_within_the_window_say_nothing(loaded):
    assert allocate_widths(loaded, CONFIG, batches(WINDOW)) is None
    assert allocate_widths(loaded, CONFIG, []) is None


@pytest.mark.parametrize(
    "options",
    [{"memory_only_layers": [1]}, {"memory_only_layers": "all"}, {"layers": [1, 3]}, {"sink_tokens": 2}],
    ids=str,
)
def test_every_kind_of_memory_gets_a_width(loaded, options):
    config = replace(CONFIG, **options)
    found = allocate_widths(loaded, config, batches())
    model = attach_memory(loaded, replace(config, feature_width=list(found.values())))
    assert [x.layer for x in memory_layers(model)] == list(found) and widths_of(model) == tuple(found.values())
    assert sum(found.values()) <= 512 * len(found) and len(set(found.values())) > 1


def test_allocated_widths_are_saved_and_read_again(base, loaded, tmp_path):
    widths = list(allocate_widths(loaded, CONFIG, batches()).values())
    model = converted(base, feature_width=widths)
    randomize(model).save_pretrained(tmp_path)
    again = TpttModel.from_pretrained(tmp_path)
    assert widths_of(again) == widths_of(model) == tuple(widths) and len(set(widths)) > 1
    ids = tokens(2, LENGTH)
    options = {"max_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        cached, whole = (again.generate(ids, use_cache=c, **options) for c in (True, False))
    assert torch.equal(cached, whole)


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
        with pytest.raises(ValueError, match="cache layer 2 was filled by a memory of another configuration"):
            other(ids[:, :tokens_more], past_key_values=cache)


def test_a_width_for_each_layer(base):
    model = converted(base, feature_width=[16, 32, 48, 64])
    assert widths_of(model) == (16, 32, 48, 64)
    assert [m.config.feature_width for m in memories(model)] == [16, 32, 48, 64]
    with pytest.raises(ValueError, match="feature_width gives 2 widths to 4 layers"):
        converted(base, feature_width=[16, 32])
    with pytest.raises(ValueError, match="feature_width gives 4 widths to 2 layers"):
        attach_memory(tiny_model("llama"), MemoryConfig(feature_width=[16, 32, 48, 64]))
    for wrong in ([], [16, 3], [16, True], "wide"):
        with pytest.raises(ValueError, match="feature_width"):
            MemoryConfig(feature_width=wrong)
