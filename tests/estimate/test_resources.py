"""What a run takes on one device: time, cache, and whether it fits."""

import pytest
import torch
from transformers import DynamicCache

from tptt.estimate.hardware import GIB, HARDWARE, Hardware
from tptt.estimate.memory import peak_memory
from tptt.estimate.operations import Operations
from tptt.estimate.resources import CACHED, ResourceEstimate, computed_in, estimate_resources, step_of
from tptt.estimate.survey import Survey
from tptt.evaluation import measured_size
from tptt.hf import as_base
from tptt.hf.read_with_cache import read_with_cache

CARD = Hardware("made up", 12, {"bfloat16": 100.0, "float32": 10.0, "float64": 1.0}, 0.5, 0.2)


def estimate(operations, tokens=10**6, computed=torch.bfloat16, parts=None, card=CARD):
    return ResourceEstimate(card, None, computed, 64, 1, 1, tokens, parts or {}, operations, None, None, ())  # type: ignore


def test_time_by_hand():
    """A million tokens: 50 GFLOP of the base at 50 TFLOP/s are a millisecond each, 2 GFLOP of the memories in float32
    at 2 TFLOP/s another, and 100 MFLOP in float64 at .2 TFLOP/s half of one."""
    base = estimate(Operations(50e9, {}))
    assert base.seconds == pytest.approx(1000)
    memory = estimate(Operations(50e9, {torch.float32: 2e9, torch.float64: 100e6}))
    assert memory.seconds_per_token == pytest.approx((1e-3, 1.5e-3))
    assert memory.seconds == pytest.approx(2500)


def test_each_part_has_its_own_peak_and_share():
    every = Operations(1e9, {torch.float32: 1e9})
    assert estimate(every, computed=torch.float32).seconds_per_token == pytest.approx((1 / 5e3, 1 / 2e3))
    assert estimate(every).seconds_per_token == pytest.approx((1 / 50e3, 1 / 2e3))
    assert CARD.seconds(1e9, torch.float32, of_memory=False) == pytest.approx(1 / 5e3)


def test_no_time_where_the_device_does_not_compute_in_that_dtype():
    assert estimate(Operations(1e9, {}), computed=torch.float16).seconds is None


def test_it_fits_if_all_parts_together_do():
    """Eleven of twelve bytes are usable; beyond nine tenths of them it is narrow."""
    sizes = {total: estimate(None, parts={"a": total - 2, "b": 2}) for total in (9, 10, 11, 12)}
    assert [x.peak for x in sizes.values()] == [9, 10, 11, 12] and CARD.usable == 11
    assert [x.fits for x in sizes.values()] == [True, True, True, False]
    assert [x.narrow for x in sizes.values()] == [False, True, True, False]


def test_the_estimate_is_made_of_what_is_counted(tiny):
    survey = Survey(tiny.changed(gradient_accumulation_steps=2, kl_weight=0.1, tokens=10**4))
    options = tiny.changed(gradient_accumulation_steps=2, kl_weight=0.1, tokens=10**4)
    found = estimate_resources(options, "80gb", survey)
    assert found.steps == 26 and found.tokens == 26 * 2 * 3 * 64
    assert found.parts == peak_memory(options, survey, torch.float32, torch.bfloat16, 64)
    assert found.operations == survey.operations(step_of(options, 64))
    assert step_of(options, 64).teacher and not step_of(options, 64).text


def test_dtypes(tiny):
    survey = Survey(tiny)
    for name, changes, dtype in (
        ("80gb", {}, torch.bfloat16),  # float32 weights under autocast
        ("80gb", {"bf16": False}, torch.float32),
        ("80gb", {"dtype": "float16"}, torch.float16),
        ("t4", {}, torch.float32),
        ("cpu", {}, torch.float32),
    ):
        assert computed_in(tiny.changed(**changes), survey, HARDWARE[name]) == dtype


def test_far_weights_take_two_more_passes_over_text(tiny):
    steps = [
        step_of(tiny.changed(max_self_attn_length=8, **x), 64).text
        for x in (
            {},
            {"long_context_weight": 1.0, "recall_share": 0.0},
            {"long_context_weight": 1.0, "recall_share": 0.75},
        )
    ]
    assert steps == [0.0, 1.0, 0.25]


@pytest.mark.parametrize(
    "changes", [{}, {"memory_only_layers": [0]}, {"layers": [1]}, {"states": "query_head"}], ids=str
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmoe", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_the_cache_is_that_of_the_model(family, changes, options_of, built):
    if family == "gpt2":
        changes = {} if "memory_only_layers" in changes else changes
    options = options_of(family, **changes)
    model, tokens, held = built(options).eval(), 24, []
    for base in (True, False):
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        with torch.no_grad():
            for n in (tokens - 4, 1, 1, 1, 1):
                with as_base(model) if base else torch.no_grad():
                    _, cache = read_with_cache(model, torch.full((1, n), 5), cache)
        held.append(measured_size(cache, tokens).bytes)
    found = estimate_resources(options.changed(dtype="float32"), "cpu")
    assert found.cache_bytes(tokens) == tuple(held)


def test_caches_are_told_where_they_lose_and_where_they_win(options_of):
    """2,048 features in float32: the states take as much as 1,024 tokens; in bfloat16, as GPUs keep them, as 2,048."""
    options = options_of("llama")
    for name, tokens in (("cpu", 1024), ("80gb", 2048)):
        found = estimate_resources(options, name)
        assert found.state_in_tokens == tokens and tokens < found.break_even < tokens + 20
        ratios = [base / converted for base, converted in map(found.cache_bytes, CACHED)]
        assert ratios[0] < 1 < ratios[2] and ratios == sorted(ratios)
    assert estimate_resources(options.changed(max_self_attn_length=None), "cpu").break_even is None


def test_the_attention_implementation_is_the_one_of_the_run(options_of):
    assert not Survey(options_of("llama")).is_eager
    assert Survey(options_of("llama", attn_implementation="eager")).is_eager


def test_unknown_hardware(tiny):
    with pytest.raises(ValueError, match="unknown hardware 'abacus'; valid are null, t4"):
        estimate_resources(tiny, "abacus")


def test_hardware_is_possible():
    for card in HARDWARE.values():
        assert 0 < card.utilisation <= 1 and 0 < card.memory_utilisation <= 1
        assert {"float32", "float64"} <= set(card.teraflops)  # what the memories are computed in
    assert HARDWARE["80gb"].usable == 80 * GIB * 11 // 12
