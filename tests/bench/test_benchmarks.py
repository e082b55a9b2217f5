"""The benchmarks run."""

import subprocess
import sys

import pytest
import torch

from benchmarks.families import examine, report
from benchmarks.features import distance
from benchmarks.generation.models import STATIC, Forward, build, check, filled, step_bytes
from benchmarks.layers.bench import ARMS
from benchmarks.layers.report import numbers
from benchmarks.record import ROOT
from benchmarks.runs import Runs
from benchmarks.timing import interleaved
from tptt.evaluation import markdown_table


def run(*arguments):
    """Standard output of a benchmark."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_contenders_take_turns():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3)
    assert set(times) == {"a", "b"} and all(t > 0 for t in times.values())
    assert order.index("b") < len(order) - 1 - order[::-1].index("a")


def test_table():
    assert markdown_table(["", "ms"], [["x", "1"]]) == "|  | ms |\n| --- | ---: |\n| x | 1 |"


def test_a_result_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        runs = Runs(tmp_path / "runs" / "x.jsonl", "ops")
        found = [runs.once({"n": n}, lambda n=n: made.append(n) or {"by": {n: n}}) for n in (1, 2)]
        assert [x["by"] for x in found] == [{"1": 1}, {"2": 2}]
    assert made == [1, 2]


@pytest.mark.slow
def test_operators_quick():
    printed = run("benchmarks.ops", "--quick")
    assert "times transformers" in printed and "Measured at commit" in printed


@pytest.mark.slow
def test_generation_quick(tmp_path):
    printed = run("benchmarks.generation", "--quick", "--plots", str(tmp_path))
    assert "constant to the byte" in printed and "8,192 tokens through `stream`" in printed
    assert "base, static cache" in printed and "W = 64 without its memory" in printed
    assert {f.name for f in tmp_path.iterdir()} == {"generation-speed.png", "generation-million.png"}


@pytest.mark.slow
def test_features_quick():
    assert "| fourier |" in run("benchmarks.features", "--steps", "1")


@pytest.mark.slow
def test_layers_quick(tmp_path):
    options = [
        "--tokens",
        "1024",
        "--length",
        "64",
        "--window",
        "8",
        "--seeds",
        "0",
        "--budgets",
        "0",
        "0.25",
        "1",
        "--answers",
        "20",
    ]
    printed = run("benchmarks.layers", *options, "--runs", str(tmp_path / "x.jsonl"))
    assert "| by KL | [" in printed and "whole everywhere, LoRA alone" in printed
    assert "Measured at commit" in printed and "(n " in printed and (tmp_path / "layers.png").exists()


def test_arms_choose_as_many_layers_as_the_budget_is():
    order = (2, 3, 0, 1)
    assert numbers([0, 0.25, 0.3, 1], 4) == [0, 1, 4]
    found = {arm: choose(order, 2) for arm, choose in ARMS.items()}
    assert found == {"by KL": (2, 3), "evenly": (1, 3), "last": (2, 3), "ranked last by KL": (0, 1)}
    for choose in ARMS.values():
        assert [len(set(choose(order, n))) for n in range(5)] == list(range(5))


def test_a_family_is_judged():
    """One that works, one without attention, one that cannot be built small."""
    assert [examine(name).verdict for name in ("qwen2", "mamba", "blt")] == ["works", "refused", "not built"]
    text = report([examine("qwen2"), examine("mamba")])
    assert "1 families work, 0 are broken, 1 are refused" in text and "Measured at commit" in text
    assert "| qwen2 | separate | yes | yes |" in text and "- mamba: MambaModel has no attention module" in text


def test_every_attention_layer_is_counted_among_the_bytes():
    models = build()
    base, own = models[STATIC], models["W = 64"]
    assert step_bytes(base, None, 2000) - step_bytes(base, None, 1000) == 1000 * 4 * 2 * 4 * 4 * 64
    assert step_bytes(own, 64, 2000) == step_bytes(own, 64, 1000)


def test_the_base_is_timed_at_the_same_context_again_and_again():
    models = build()
    assert "of the static from the dynamic cache" in check(models)
    for name in list(models)[:2]:
        cache = filled(models[name], name, 20, 1)
        step = Forward(name, models[name], cache, torch.tensor([[5]]))
        with torch.no_grad():
            first, again = step(), step()
        torch.testing.assert_close(first, again)
        assert int(cache.get_seq_length()) == 20


def test_what_is_left_of_attention_is_counted_where_answers_are_asked():
    def memory(q, tokens):
        return torch.full((1, 2, 1, 1), 3.0)

    target = torch.tensor([[[1.0], [5.0]]])
    asked = torch.tensor([[True, False]])
    nothing = torch.zeros(1, 2, 1)
    squared, size = distance(memory, (nothing,) * 4 + (target,), asked, torch.tensor([0]))
    assert float(squared) == 4.0 and float(size) == 1.0
