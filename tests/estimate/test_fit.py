"""Which keys to change so that a run fits."""

import pytest

from tptt.estimate.fit import ways_to_fit
from tptt.estimate.hardware import HARDWARE, Hardware
from tptt.estimate.resources import estimate_resources
from tptt.estimate.survey import Survey


@pytest.fixture
def card(monkeypatch):
    """Make the CPU one that a run of so many bytes just fits."""

    def make(peak: int) -> None:
        card = Hardware("a small one", peak * 12 // 11 + 12, {"float32": 1.0, "float64": 1.0}, 0.5, 0.5)
        monkeypatch.setitem(HARDWARE, "cpu", card)

    return make


def test_what_does_not_fit_names_the_keys_to_change(tiny, card):
    survey = Survey(tiny)

    def peak(**changes):
        return estimate_resources(tiny.changed(**changes), "cpu", survey).peak

    card(peak())
    assert ways_to_fit(tiny, "cpu", survey) == {}
    card(peak(gradient_checkpointing=True))
    assert ways_to_fit(tiny, "cpu", survey) == {"gradient_checkpointing": True}
    card(peak(gradient_checkpointing=True, per_device_train_batch_size=1))
    assert ways_to_fit(tiny, "cpu", survey) == {
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
    }
    card(1000)
    assert ways_to_fit(tiny, "cpu", survey) is None


def test_shorter_rows_are_the_last_way(options_of, card):
    options = options_of(
        "llama", seq_len=2048, per_device_train_batch_size=1, gradient_accumulation_steps=3, gradient_checkpointing=True
    )
    survey = Survey(options)
    card(estimate_resources(options.changed(seq_len=1024), "cpu", survey).peak)
    changes = ways_to_fit(options, "cpu", survey)
    assert changes == {"seq_len": 1024, "gradient_accumulation_steps": 6}
    found = estimate_resources(options.changed(**changes), "cpu", survey)
    assert found.narrow and found.fits and found.tokens // found.steps == 3 * 2048
    assert not estimate_resources(options.changed(seq_len=512), "cpu", survey).narrow


def test_a_card_without_bfloat16_asks_for_float16(options_of):
    options = options_of("llama", dtype="bfloat16")
    survey = Survey(options)
    found = estimate_resources(options, "t4", survey)
    assert found.seconds is None and "no bfloat16; set dtype to float16 or float32" in found.notes[0]
    assert ways_to_fit(options, "t4", survey) == {"dtype": "float16"}
    assert estimate_resources(options.changed(dtype="float16"), "t4", survey).seconds > 0
    with pytest.raises(ValueError, match="unknown hardware 'abacus'; valid are null, t4"):
        ways_to_fit(options, "abacus", survey)
