"""Which layers get a memory, and those that have nothing beside it."""

import copy

import pytest
import torch

from benchmarks.tiny import tiny_model
from tests.families.checks import assert_invariants
from tests.families.models import assert_near, build, randomize, tokens
from tptt import (
    MemoryConfig,
    Session,
    TpttConfig,
    TpttModel,
    attach_memory,
    calibrate,
    detach_memory,
    set_mag_weight,
    stream,
)
from tptt.evaluation import measured_size
from tptt.hf import memories

WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}


def four_layers(family="llama", **changes):
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2} if family == "gemma2" else {}
    return tiny_model(family, num_hidden_layers=4, **kinds, **changes)


def carriers(model):
    return [i for i, x in enumerate(model.model.layers) if hasattr(x.self_attn, "liza")]


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", [0, 1, 2, 3]), ([2], [2]), ((0, 3), [0, 3]), (2, [1, 3]), (1, [0, 1, 2, 3])]
)
def test_choice(layers, expected):
    model = attach_memory(four_layers(), MemoryConfig(layers=layers))
    assert carriers(model) == expected
    assert len(memories(model)) == len(expected)


@pytest.mark.parametrize("layers", [[0], [1, 3], 2])
@pytest.mark.parametrize("settings", [{}, WINDOW], ids=["full", "window"])
def test_some_layers_stay_softmax(layers, settings):
    assert_invariants(randomize(attach_memory(four_layers(), MemoryConfig(layers=layers, **settings))))


MIXED = {
    "whole, window": {"layers": [0, 2], **WINDOW},
    "window, whole": {"layers": [1, 3], **WINDOW},
    "whole, window, memory alone": {"layers": [1, 2], "memory_only_layers": [2], **WINDOW},
    "memory alone, whole": {"layers": [0, 1], "memory_only_layers": "all"},
}
_WHOLE = "full_attention"
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {"layer_types": [_WHOLE] * 4},
    "qwen3": {"layer_types": [_WHOLE] * 4},
    "gemma2": {},
    "gpt2": {"n_layer": 4},
}


@pytest.mark.parametrize("mixture", MIXED)
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_contexts_among_windows(family, mixture):
    """What `tptt.convert.choose_layers` makes: a layer without a memory has the base's own attention."""
    model = four_layers(family, **FAMILIES[family]) if family != "gpt2" else tiny_model("gpt2", n_layer=4)
    assert_invariants(randomize(attach_memory(model, MemoryConfig(**MIXED[mixture]))))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_whole_contexts_grow_and_windows_do_not(attention):
    model = randomize(
        attach_memory(four_layers(attention=attention), MemoryConfig(**MIXED["whole, window, memory alone"]))
    )
    with torch.no_grad():
        cache = model(input_ids=tokens(1, 30), use_cache=True).past_key_values
        for _ in range(3):
            cache = model(input_ids=tokens(1, 1), past_key_values=cache, use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [33, 6, 0, 33]
    assert [getattr(layer, "state", None) is not None for layer in cache.layers] == [False, True, True, False]


def test_a_session_over_whole_contexts_and_windows(tmp_path):
    model = randomize(attach_memory(four_layers(), MemoryConfig(**MIXED["whole, window, memory alone"])))
    ids = tokens(1, 40)[0]
    session = stream(model, ids, chunk_size=7)
    with torch.no_grad():
        want = model.generate(ids[None], max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 40:]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(session.ask(None, **options), want)
    again = Session.load(session.save(tmp_path / "session.safetensors"), model)
    assert torch.equal(again.generate(None, **options), want)


@pytest.mark.parametrize("layers", [[0], [1], [0, 1], [2, 3], [0, 3]])
def test_sliding_layers_among_full_ones(layers):
    """The mask of a kind of layers goes by the cache of whichever comes first, with a memory or without."""
    assert_invariants(randomize(attach_memory(four_layers("gemma2"), MemoryConfig(layers=layers, **WINDOW))))


@pytest.mark.parametrize(
    "settings",
    [
        {"memory_only_layers": [1, 2]},
        {"memory_only_layers": "all"},
        {"memory_only_layers": [0], "layers": [0, 2]},
        {"memory_only_layers": [0], **WINDOW},
        {"mag_weight": 1.0, "mix_gate": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_memory_only_layers(settings, family):
    # few features: with the default's, four random memories in a row carry rounding to where the bound of the
    # invariants is
    config = MemoryConfig(feature_width=256, **settings)
    assert_invariants(randomize(attach_memory(four_layers(family), config)))


def test_a_memory_only_layer_computes_no_softmax_and_holds_no_keys(monkeypatch):
    model = randomize(attach_memory(four_layers(), MemoryConfig(memory_only_layers=[1, 2])))
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    with torch.no_grad():
        cache = model(input_ids=tokens(1, 20), use_cache=True).past_key_values
    assert len(calls) == 2
    assert [layer.keys.shape[2] for layer in cache.layers] == [20, 0, 0, 20]
    assert all(layer.get_seq_length() == 20 and layer.state is not None for layer in cache.layers)


def test_nothing_but_states_in_the_cache():
    model = randomize(attach_memory(four_layers(), MemoryConfig(mag_weight=1.0, mix_gate="none")))
    held = []
    for n in (5, 50):
        with torch.no_grad():
            cache = model(input_ids=tokens(1, n), use_cache=True).past_key_values
        held.append(measured_size(cache).bytes)
        assert measured_size(cache).entries == 0
    assert held[0] == held[1]


def test_it_is_what_mu_one_computes():
    ids = tokens(2, 20)
    fixed = randomize(attach_memory(build("llama"), MemoryConfig(mag_weight=1.0, mix_gate="none")))
    free = randomize(attach_memory(build("llama"), MemoryConfig(mag_weight=1.0, mix_gate="token")))
    for a, b in zip(memories(fixed), memories(free), strict=True):
        b.load_state_dict(a.state_dict(), strict=False)
    with torch.no_grad():
        assert_near(fixed(input_ids=ids).logits, free(input_ids=ids).logits)


def test_a_fixed_mu_stays():
    model = attach_memory(four_layers(), MemoryConfig(memory_only_layers=[1]))
    set_mag_weight(model, 0.25)
    assert [float(m.mag_weight) for m in memories(model)] == [0.25, 1.0, 0.25, 0.25]
    alone = attach_memory(four_layers(), MemoryConfig(memory_only_layers="all"))
    set_mag_weight(alone, 1.0)
    with pytest.raises(ValueError, match="mu is fixed at 1 in every memory"):
        set_mag_weight(alone, 0.5)


def test_without_a_gate_the_softmax_goes_and_comes_with_the_weight(tmp_path):
    """As a schedule moves it, and as a checkpoint has it."""
    ids, base = tokens(2, 12), four_layers()
    with torch.no_grad():
        want = base(input_ids=ids).logits
    base.save_pretrained(tmp_path / "base")
    model = TpttModel(TpttConfig(base_model_name=tmp_path / "base", mag_weight=1.0, mix_gate="none")).eval()

    def entries(model):
        with torch.no_grad():
            return measured_size(model(input_ids=ids, use_cache=True).past_key_values).entries

    assert entries(model) == 0
    set_mag_weight(model, 0.0)
    assert entries(model) == 12
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, want)
    set_mag_weight(model, 1.0)
    assert entries(model) == 0
    for weight, kept in ((0.5, 12), (1.0, 0)):
        set_mag_weight(model, weight)
        model.save_pretrained(tmp_path / "out")
        assert entries(TpttModel.from_pretrained(tmp_path / "out").eval()) == kept
        fresh = TpttModel(TpttConfig(base_model_name=tmp_path / "base", mag_weight=0.3, mix_gate="none")).eval()
        fresh.load_state_dict(model.state_dict())
        assert entries(fresh) == kept
    bloom = attach_memory(tiny_model("bloom"), MemoryConfig(mag_weight=1.0, mix_gate="none"))
    assert entries(bloom) == 12  # whose softmax cannot be left out: it counts for nothing


def test_calibration_measures_the_softmax_that_is_left_out():
    both, alone = (
        calibrate(
            attach_memory(four_layers(), MemoryConfig("linear_attention", memory_only_layers=only)), tokens(2, 32)
        )
        for only in ((), [0])
    )
    a, b = memories(both)[0], memories(alone)[0]
    assert torch.equal(a.output_scale, b.output_scale) and float(a.output_scale.detach().std()) > 0


def test_without_a_common_attention_interface_it_is_refused():
    with pytest.raises(ValueError, match="mu cannot be fixed at 1"):
        attach_memory(tiny_model("bloom"), MemoryConfig(memory_only_layers="all"))


def test_a_static_cache_is_refused():
    model = attach_memory(four_layers(), MemoryConfig(memory_only_layers=[1]))
    with pytest.raises(ValueError, match="static cache cannot be without keys and values"):
        model.generate(tokens(1, 5), max_new_tokens=2, cache_implementation="static", disable_compile=True)


def test_detached_it_is_the_base():
    base, ids = four_layers(), tokens(1, 9)
    with torch.no_grad():
        want = base(input_ids=ids).logits
        model = attach_memory(base, MemoryConfig(layers=[1, 2], memory_only_layers=[2]))
        assert not torch.allclose(model(input_ids=ids).logits, want)
        assert torch.equal(detach_memory(model)(input_ids=ids).logits, want)


def test_a_copy_is_a_model_of_its_own():
    model = randomize(attach_memory(four_layers(), MemoryConfig(memory_only_layers=[1], **WINDOW)))
    ids = tokens(2, 20)
    with torch.no_grad():
        want = model(input_ids=ids).logits
        copied = copy.deepcopy(model)
        detach_memory(model)
        assert torch.equal(copied(input_ids=ids).logits, want)
    assert_invariants(copied)


def test_a_whole_model_can_be_pickled(tmp_path):
    model = randomize(attach_memory(four_layers(), MemoryConfig(memory_only_layers=[1], **WINDOW)))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens(1, 20)).logits, model(input_ids=tokens(1, 20)).logits)
    assert_invariants(again)


def test_saved_and_loaded(tmp_path):
    four_layers().save_pretrained(tmp_path / "base")
    settings = {
        "layers": [0, 2, 3],
        "memory_only_layers": [2],
        "max_self_attn_length": 6,
        "attention_layout": "separate",
    }
    model = randomize(TpttModel(TpttConfig(base_model_name=tmp_path / "base", **settings))).eval()
    model.save_pretrained(tmp_path / "out")
    again = TpttModel.from_pretrained(tmp_path / "out").eval()
    assert carriers(again.inner) == [0, 2, 3]
    assert again.config.memory_config() == model.config.memory_config()
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens(1, 20)).logits, model(input_ids=tokens(1, 20)).logits)
    assert_invariants(again)
