"""Conversions of several processes: they train one model, and one of them writes it."""

import json
from pathlib import Path

import yaml

import tptt
from tests.torchrun import torchrun
from tptt.assets import BASE


def test_processes_that_measure_differently_train_one_model(tmp_path):
    torchrun(2, Path(__file__).parent / "train" / "conversion_worker.py", tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["widths"] == second["widths"] and len(set(first["widths"])) > 1
    assert first["trained"] == second["trained"]
    assert first["saved"] and second["saved"]
    assert len(first["losses"]) == 4
    model = tptt.TpttModel.from_pretrained(tmp_path / "model")
    assert list(model.config.feature_width) == first["widths"]


def test_the_command_in_two_processes(tmp_path):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {"base_model": str(BASE), "max_self_attn_length": 8, "seq_len": 64, "tokens": 1024, "probe_steps": 0}
        )
    )
    out = tmp_path / "out"
    said = torchrun(2, "-m", "tptt.cli.train", tmp_path / "run.yaml", "--output-dir", out, "--feature-width", "64")
    assert said.count("model, run.yaml and report.md:") == 1
    assert "at step 4." in (out / "report.md").read_text()  # of two rows in each process
    assert tptt.TpttModel.from_pretrained(out).config.max_self_attn_length == 8


def test_a_signal_to_one_process_ends_all_of_them_after_the_same_step(tmp_path):
    torchrun(2, Path(__file__).parent / "run" / "interrupt_worker.py", tmp_path)
    for rank in (0, 1):
        ended = json.loads((tmp_path / f"{rank}.json").read_text())
        assert ended == {"code": 138, "words": "SIGUSR1: saved after step 2 of 8"}
    assert [x.name for x in (tmp_path / "run" / "trainer").glob("checkpoint-*")] == ["checkpoint-2"]
