"""The convert command of the real bench, with the embedded base in the place of a real one."""

import argparse
import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from benchmarks.real import convert
from benchmarks.real.bases import BASES, Base
from benchmarks.real.conversions import RECIPES, Conversion
from benchmarks.real.looks import looks_file, read_looks
from benchmarks.real.texts import text_files
from benchmarks.real.wheels import Member
from tptt.assets import BASE as EMBEDDED
from tptt.hf import memories

ROW = 128
TOKENS = 8 * ROW  # two rows a step


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A prepared folder: base and text."""
    base = Base("tiny", Member((), "model", ""), ROW, "none")
    monkeypatch.setitem(BASES, "tiny", base)
    shutil.copytree(EMBEDDED, base.folder(tmp_path) / "model")
    text = text_files(tmp_path)[0]
    text.parent.mkdir()
    text.write_text("\n\n".join(f"The {word(n)} of {word(7 * n)} is {word(n * n)}." for n in range(2_000)))
    return tmp_path


def word(number):
    """A word for a number."""
    return "".join("bdfgklmnprstv"[digit] + "aeiou"[digit % 5] for digit in (number % 13, number % 11, number % 7))


def command(prepared, *more):
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    given = ["--base", "tiny", "--tokens", str(TOKENS), "--folder", str(prepared)]
    convert.run(parser.parse_args([*given, "--results", str(prepared / "results"), *more]))
    return read_looks(looks_file("tiny", prepared / "results"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe(prepared, recipe, capsys):
    lines = command(prepared, "--recipe", recipe)
    events = [line["event"] for line in lines]
    assert events[0] == "training begins" and events[-1] == "saved"
    looks = [line for line in lines if line["event"] == "look"]
    assert [line["step"] for line in looks] == [1, 2, 3, 4] and all(line["name"] == f"{recipe}-1k" for line in looks)
    assert all(0 <= line["found"]["recall_beyond/both"] <= 1 for line in looks)
    assert all({"commit", "machine", "transformers"} <= set(line["where"]) for line in lines)
    folder = Conversion(BASES["tiny"], recipe, TOKENS).folder(prepared)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert memories(model) and model.config.max_self_attn_length == ROW // 4
    if recipe == "window":
        assert all(float(layer.mag_weight) == 0.0 for layer in memories(model))
    assert command(prepared, "--recipe", recipe) == lines  # it is there
    assert "is there" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on(prepared):
    whole = command(prepared, "--seed", "1")
    shutil.rmtree(prepared / "models")
    looks_file("tiny", prepared / "results").unlink()
    stopped = Stop(after=2)
    convert.KeepLooks, keep = lambda *given: stopped.around(keep(*given)), convert.KeepLooks
    try:
        with pytest.raises(SystemExit) as end:
            command(prepared, "--seed", "1")
    finally:
        convert.KeepLooks = keep
    assert end.value.code == 128 + 15
    lines = command(prepared, "--seed", "1")
    kind = ("event", "step", "found", "loss")
    assert [[x.get(k) for k in kind] for x in lines if x["event"] in ("look", "loss")] == [
        [x.get(k) for k in kind] for x in whole if x["event"] in ("look", "loss")
    ]
    assert [x["run"] for x in lines if x["event"] == "training begins"] == [1, 2]


class Stop:
    """Sends the process SIGTERM after a step, as --minutes does."""

    def __init__(self, after):
        self.after = after

    def around(self, looks):
        kept = looks.on_step_end

        def on_step_end(args, state, control, **kwargs):
            kept(args, state, control, **kwargs)
            if state.global_step == self.after:
                timer = convert.stop_after(0.0)
                timer.join()

        looks.on_step_end = on_step_end
        return looks


def test_what_is_not_prepared_is_named(prepared):
    text_files(prepared)[0].unlink()
    with pytest.raises(SystemExit, match="train.txt is not there.*prepare --base tiny"):
        command(prepared)


def test_a_recipe_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no recipe 'best'; valid are default, window"):
        Conversion(next(iter(BASES.values())), "best", 1024)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    file = tmp_path / "looks.jsonl"
    file.write_text(json.dumps({"name": "a"}) + '\n{"name": ')
    assert read_looks(file) == [{"name": "a"}]
    file.write_text('{"name": \n' + json.dumps({"name": "a"}) + "\n")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_looks(file)
