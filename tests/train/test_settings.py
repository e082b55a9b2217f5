from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tptt.data import FORMATS
from tptt.train import TrainingSettings


def test_the_defaults_are_valid_and_replaceable():
    assert replace(TrainingSettings(), seed=3) == TrainingSettings(seed=3)
    assert set(TrainingSettings().recall_formats) <= set(FORMATS)


def test_every_setting_is_documented():
    for field in fields(TrainingSettings):
        assert f"{field.name}" in TrainingSettings.__doc__.partition("Args:")[2], field.name


def test_sequences_become_tuples_and_all_becomes_its_names():
    found = TrainingSettings(facts=[1, 2], recall_formats=["passkey", "records"])
    assert (found.facts, found.recall_formats) == ((1, 2), ("passkey", "records"))
    assert TrainingSettings(recall_formats="all").recall_formats == tuple(FORMATS)
    assert TrainingSettings(recall_formats="passkey").recall_formats == ("passkey",)


@given(
    tokens=st.integers(1, 10**7),
    rows=st.integers(1, 16),
    batches=st.integers(1, 4),
    chunks=st.integers(1, 4),
    length=st.integers(16, 1024),
    devices=st.integers(1, 8),
)
def test_steps_take_about_the_tokens_asked_for(tokens, rows, batches, chunks, length, devices):
    settings = TrainingSettings(
        tokens=tokens, per_device_train_batch_size=rows, gradient_accumulation_steps=batches, tbptt_chunks=chunks
    )
    steps, each = settings.steps(length, devices), rows * batches * chunks * length * devices
    assert steps >= 1
    assert abs(steps * each - tokens) <= each / 2 or (steps == 1 and tokens < each)


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("tokens", 0, "a whole number of 1 or more"),
        ("tokens", 1.5, "a whole number"),
        ("per_device_train_batch_size", True, "a whole number"),
        ("gradient_accumulation_steps", 0, "of 1 or more"),
        ("tbptt_chunks", 0, "of 1 or more"),
        ("mag_weight_steps", 0, "of 1 or more"),
        ("warmup_steps", -1, "of 0 or more"),
        ("probe_steps", -1, "of 0 or more"),
        ("seed", -1, "of 0 or more"),
        ("seed", "1", "a whole number"),
        ("seq_len", 15, "of 16 or more"),
        ("learning_rate", -1e-3, "a number of 0 or more"),
        ("memory_learning_rate", "fast", "a number"),
        ("memory_learning_rate", float("inf"), "a number of 0 or more, finite, got inf"),
        ("answer_weight", -1, "of 0 or more"),
        ("filler_weight", -1, "of 0 or more"),
        ("kl_weight", float("nan"), "of 0 or more"),
        ("attention_transfer_weight", -1, "of 0 or more"),
        ("recall_share", 1.1, r"in \[0, 1\]"),
        ("fact_weight", -1, "of 0 or more"),
        ("write_gate_floor", 1.5, r"in \[0, 1\]"),
        ("long_context_weight", -1.0, "of 0 or more"),
        ("write_gate_steps", 0, "a whole number of 1 or more"),
        ("mag_weight_start", 2, r"in \[0, 1\]"),
        ("stop_at_recall", -0.1, r"in \[0, 1\]"),
        ("facts", (2, 0), "a whole number of 1 or more, got 0"),
        ("facts", (), "one number or more"),
        ("recall_formats", ("riddles",), "unknown recall format riddles"),
    ],
)
def test_bad_values_are_named_with_what_is_valid(name, value, valid):
    with pytest.raises(ValueError, match=valid) as error:
        TrainingSettings(**{name: value})
    assert name in str(error.value) or name == "recall_formats"


def test_settings_that_exclude_each_other():
    with pytest.raises(ValueError, match="set probe_steps to 1 or more"):
        TrainingSettings(stop_at_recall=0.9, probe_steps=0)
    with pytest.raises(ValueError, match="tbptt_chunks needs the cache that gradient_checkpointing takes away"):
        TrainingSettings(tbptt_chunks=2, gradient_checkpointing=True)
