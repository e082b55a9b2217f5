import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from tptt.cli.main import app
from tptt.data import FORMATS
from tptt.quickstart.options import QuickstartOptions
from tptt.train import TrainingSettings


@pytest.fixture(scope="module")
def base(make_base):
    return make_base(64)


def invoke(*arguments):
    return CliRunner().invoke(app, ["quickstart", *map(str, arguments)])


def test_the_whole_job(base, tmp_path):
    out = tmp_path / "out"
    threads = torch.get_num_threads()
    run = invoke(
        "--base-model", base, "--data", base / "text.txt", "--output-dir", out, "--steps", 4, "--threads", threads
    )
    assert run.exit_code == 0, run.output
    report = (out / "report.md").read_text()
    for part in ("| base |", "| window alone |", "| converted |", "perplexity at 256", "a TpttModel", "torch "):
        assert part in report
    for name in FORMATS:
        assert re.search(rf"^\| {name} \|( (-|[01]\.\d\d) \|){{4}}$", report, re.M), name
    branches = report.partition("## Branches")[2].partition("## Training")[0]
    for arm in ("both", "window only", "memory only"):
        assert re.search(rf"^\| {arm} \|( (-|[\d.]+) \|){{3}}$", branches, re.M), arm
    assert re.search(r"^\| mean mu \| [01]\.\d\d \| [01]\.\d\d \|$", branches, re.M)
    assert "the memory is bypassed" in branches  # four steps teach nothing
    assert "8 keys per layer (window 8)" in " ".join(report.split())
    assert "bit for bit" in run.output
    for name in ("training", "quality", "memory"):
        assert (out / "plots" / f"{name}.png").stat().st_size > 5000
    checkpoint = out / "checkpoint"
    card = (checkpoint / "README.md").read_text()
    assert card.startswith("---\nlibrary_name") and "| passkey |" in card
    assert json.loads((checkpoint / "config.json").read_text())["max_self_attn_length"] == 8
    again = invoke("--base-model", base, "--output-dir", out)
    assert again.exit_code == 1 and "is not empty" in " ".join(again.output.split())


def test_without_matplotlib_it_says_so_and_goes_on(base, tmp_path, monkeypatch):
    for name in [x for x in sys.modules if x.partition(".")[0] == "matplotlib" or x == "tptt.quickstart.plots"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    run = invoke("--base-model", base, "--data", base / "text.txt", "--output-dir", out, "--steps", 1, "--seq-len", 32)
    assert run.exit_code == 0, run.output
    assert "no plots were drawn" in run.output and "tptt[plot]" in run.output
    report = (out / "report.md").read_text()
    assert "](plots/" not in report and "no plots were drawn" in report and not (out / "plots").exists()


def test_training_follows_the_default_recipe(tmp_path):
    options, recipe = QuickstartOptions(tmp_path, steps=7, seed=3), TrainingSettings()
    settings = options.settings(64)
    assert settings == replace(recipe, tokens=settings.tokens, seq_len=64, seed=3)
    assert settings.steps(64) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", 0), "--steps must be 1 or more"),
        (("--seq-len", 32, "--window", 32), "--window must be less than"),
        (("--seq-len", 8), "seq_len must be a whole number of 16 or more"),
        (("--data", "no-such-file.txt"), "no-such-file.txt"),
    ],
)
def test_bad_options(base, tmp_path, arguments, message, monkeypatch):
    def offline(name, split):
        raise FileNotFoundError(f"no data set {name}")

    monkeypatch.setattr("datasets.load_dataset", offline)
    run = invoke("--base-model", base, "--output-dir", tmp_path / "out", *arguments)
    assert run.exit_code == 1
    assert message in " ".join(run.output.split())


def test_missing_base_is_named(tmp_path):
    run = invoke("--base-model", tmp_path / "nothing", "--output-dir", tmp_path / "out")
    assert run.exit_code == 1 and "was not found" in " ".join(run.output.split())


def test_help_names_the_options():
    done = subprocess.run(
        [sys.executable, "-m", "tptt.cli.main", "quickstart", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--base-model", "--data", "--output-dir", "--window", "--seq-len", "--steps", "--seed", "--threads"):
        assert option in done.stdout
