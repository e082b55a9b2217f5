import argparse

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.real import profile
from benchmarks.real.profile import ELEMENTWISE, Contender, kind_of, seconds_by_kind, take_turns


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("DirectRecurrenceBackward", "kernels of the memory"),
        ("_Waves", "kernels of the memory"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "softmax attention"),
        ("aten::mul", ELEMENTWISE),
    ],
)
def test_an_operator_has_a_kind(name, kind):
    assert kind_of(name) == kind


def test_both_take_turns_after_one_to_warm_up():
    calls = []
    base = Contender(lambda: calls.append("base"), lambda: calls.append("its optimizer"))
    used, passed = take_turns(base, Contender(lambda: calls.append("converted")), 2)
    assert calls == 3 * ["base", "its optimizer", "converted"]
    assert len(used) == len(passed) == 2


def test_seconds_are_found_under_their_kind():
    x = torch.randn(256, 256)
    found = seconds_by_kind(Contender(lambda: x @ x, lambda: x.mul(2)))
    assert found["matrix products"] > 0 and found["optimizer"] > 0
    assert found["kernels of the memory"] == found["softmax attention"] == 0


def test_the_command_prints_both_tables(monkeypatch, tmp_path, capsys):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for name, value in {"TRAINED": (160,), "PROMPT": 160, "CONTEXT": 160, "WINDOW": 64}.items():
        monkeypatch.setattr(profile, name, value)
    parser, threads = argparse.ArgumentParser(), torch.get_num_threads()
    profile.add_arguments(parser)
    profile.run(parser.parse_args(["--base", str(tmp_path), "--turns", "1", "--width", "64"]))
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    for name in ("training step, T = 160", "prefill, T = 160", "decode of 4 tokens, T = 160"):
        assert f"| {name} |" in printed
    assert "kernels of the memory" in printed and "ratio, processor" in printed
