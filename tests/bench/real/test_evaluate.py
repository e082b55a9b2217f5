"""Rows are answered once, whatever stops a run, and what is written is what the model said and held."""

import json
import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.real import __main__ as bench
from benchmarks.real import perplexity, skills
from benchmarks.real.answers import answered, open_rows, read_answers
from benchmarks.real.arms import Arm, load, load_base, yarn
from benchmarks.real.greedy import answer, read
from benchmarks.real.judge import score
from benchmarks.real.lines import append
from benchmarks.real.peak import peak_memory
from benchmarks.real.prompts import Prompt
from benchmarks.real.rows import prompt_of
from benchmarks.record import FIELDS, ROOT
from tptt import MemoryConfig, TpttConfig, TpttModel
from tptt.evaluation import CacheFormula, perplexity_by_position
from tptt.evaluation.perplexity import token_losses

from .models import NAME, row, write_base, write_prepared


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def converted_folder(base_folder, tmp_path_factory):
    """A converted model with a window of 8 tokens."""
    folder = tmp_path_factory.mktemp("converted")
    torch.manual_seed(1)
    memory = MemoryConfig(max_self_attn_length=8, feature_width=4)
    TpttModel(TpttConfig(base_model_name=str(base_folder), **vars(memory))).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(base_folder):
    return AutoTokenizer.from_pretrained(base_folder)


ROWS = [row(seed, task) for task in ("niah_single_1", "vt") for seed in range(3)]


@pytest.fixture
def prepared(tmp_path):
    return write_prepared(tmp_path / "prepared", ROWS)


def arguments(prepared, base_folder, arm="base", tables="ruler", *more):
    given = ["evaluate", "--base", NAME, "--base-folder", base_folder, "--arm", arm, "--tables", tables]
    return [str(x) for x in (*given, "--folder", prepared, "--results", prepared / "results", *more)]


def lines_of(prepared, arm="base"):
    return read_answers(prepared / "results" / NAME / f"{arm}.jsonl")


def test_the_prompt_is_cut_at_the_end_of_the_context(tokenizer):
    one = row(1)
    prompt = Prompt.of(one, tokenizer)
    assert prompt.context + prompt.question == tokenizer(prompt_of(one, tokenizer), add_special_tokens=False).input_ids
    assert tokenizer.decode(prompt.context).endswith(one.context)
    assert tokenizer.decode(prompt.question).startswith("w1 w2")


@pytest.mark.parametrize("chunk", [None, 7])
def test_an_answer_is_what_generate_says(base_folder, tokenizer, chunk):
    model, prompt = load_base(base_folder), Prompt.of(row(2), tokenizer)
    found = answer(model, tokenizer, prompt, 6, chunk=chunk)
    ids = torch.tensor([prompt.context + prompt.question])
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert found.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert found.tokens == len(expected) and found.prompt_tokens == ids.shape[1]
    assert found.bytes_at_question == CacheFormula.of(model).after(len(prompt.context)).bytes
    assert found.prefill_seconds > 0 and found.decode_seconds > 0


def test_decoding_stops_where_nothing_can_change_the_score(base_folder, tokenizer):
    model, prompt = load_base(base_folder), Prompt.of(row(2), tokenizer)
    whole = answer(model, tokenizer, prompt, 6)
    first = whole.text.split()[0]
    cut = answer(model, tokenizer, prompt, 6, done=lambda text: score(text, [first], "all") == 1)
    assert (cut.text, cut.stopped, cut.tokens) == (first, "found", 1) and whole.stopped in ("room", "end")


def test_a_converted_model_holds_as_much_whatever_the_context(converted_folder, base_folder, tokenizer):
    reader = load(Arm.read(f"mine={converted_folder}"), base_folder, 64)
    model = reader.model_for(1024)
    held = {
        n: answer(model, tokenizer, Prompt.of(row(0, words=n), tokenizer), 2, chunk=16).bytes_at_question
        for n in (30, 60)
    }
    assert len(set(held.values())) == 1
    context = len(Prompt.of(row(0, words=30), tokenizer).context)
    assert held[30] == CacheFormula.of(model).after(context, (context - 1) % 16 + 1).bytes
    without = load(Arm.read(f"window={converted_folder},memory=none,window=16"), base_folder, 64).model_for(1024)
    size = answer(without, tokenizer, Prompt.of(row(0, words=60), tokenizer), 2, chunk=16).bytes_at_question
    assert size < held[30] + 2 * 8 * 4 * 64 and size != held[30]


def test_an_untrained_window_hides_what_is_far(base_folder, tokenizer):
    model = load(Arm.read("streaming@8"), base_folder, 64).model_for(1024)
    kept = load(Arm.read("streaming@100"), base_folder, 64).model_for(1024)
    base, ids = load_base(base_folder), Prompt.of(row(0), tokenizer).context
    with torch.no_grad():
        whole, near, wide = (read(m, ids, None, 16)[0] for m in (base, model, kept))
    torch.testing.assert_close(whole, wide, rtol=1e-4, atol=1e-4)
    assert (whole - near).abs().max() > 1e-2


def test_yarn_shares_weights_and_changes_positions(base_folder):
    base = load_base(base_folder)
    longer = yarn(base, 2.0, 64)
    assert longer.model.layers[0].mlp.up_proj.weight.data_ptr() == base.model.layers[0].mlp.up_proj.weight.data_ptr()
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        assert (longer(ids).logits - base(ids).logits).abs().max() > 1e-3
    assert longer.config.rope_parameters["factor"] == 2.0


def test_every_row_is_answered_once(prepared, base_folder):
    bench.main(arguments(prepared, base_folder, "base", "ruler", "--rows", 2))
    first = lines_of(prepared)
    assert [(x["task"], x["seed"]) for x in first] == [("niah_single_1", 0), ("vt", 0), ("niah_single_1", 1), ("vt", 1)]
    bench.main(arguments(prepared, base_folder))
    bench.main(arguments(prepared, base_folder))
    file = prepared / "results" / NAME / "base.jsonl"
    assert len(file.read_text(encoding="utf-8").splitlines()) == 6 and lines_of(prepared)[:4] == first
    assert answered(file) == {one.key for one in ROWS}
    for line in first:
        assert line["score"] == score(line["answer"], line["references"], "all")
        assert tuple(line["origin"]) == FIELDS and line["base"] == NAME and line["arm"] == "base"
        assert line["bytes_at_question"] == line["context_tokens"] * 2 * 2 * 2 * 8 * 4  # layers, k and v, heads, width


def test_a_killed_run_goes_on(prepared, base_folder):
    """The process is killed at its second answer, and half a line is left as well."""
    kill = (
        "import os, signal, sys\n"
        "from benchmarks.real import __main__ as bench, job\n"
        "write, count = job.append, []\n"
        "def once(*given):\n"
        "    write(*given)\n"
        "    count.append(1)\n"
        "    if len(count) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "job.append = once\n"
        "bench.main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", kill, *arguments(prepared, base_folder)], cwd=ROOT, capture_output=True
    )
    file = prepared / "results" / NAME / "base.jsonl"
    assert done.returncode < 0 and len(lines_of(prepared)) == 2
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + '{"table": "ruler", "ta', encoding="utf-8")
    bench.main(arguments(prepared, base_folder))
    text = file.read_text(encoding="utf-8")
    assert text.startswith(whole) and [json.loads(x)["seed"] for x in text.splitlines()] == [0, 0, 1, 1, 2, 2]


def test_no_row_begins_when_the_time_is_over(prepared, base_folder, capsys):
    bench.main(arguments(prepared, base_folder, "base", "ruler,skills", "--minutes", 0))
    assert lines_of(prepared) == [] and "6 rows are left" in capsys.readouterr().out


def test_a_damaged_answer_is_named(tmp_path):
    file = tmp_path / "base.jsonl"
    append(file, {"table": "ruler", "task": "vt", "length": 1, "seed": 0, "split": "test"})
    file.write_text("no answer\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1 of .*base.jsonl is no answer"):
        read_answers(file)


def test_cells_take_turns():
    rows = [row(seed, task, length) for task, length in (("vt", 2048), ("qa_1", 1024)) for seed in range(2)]
    left = open_rows(rows, {rows[0].key})
    assert [(x.task, x.seed) for x in left] == [("qa_1", 0), ("qa_1", 1), ("vt", 1)]


def test_text_tables(prepared, base_folder, converted_folder, monkeypatch):
    monkeypatch.setattr(perplexity, "BOUNDS", (16, 32, 64))
    monkeypatch.setattr(skills, "LENGTH", 32)
    arm = f"mine={converted_folder}"
    for name in ("base", arm, arm):
        bench.main(arguments(prepared, base_folder, name, "perplexity,skills", "--rows", 2))
    mine, base = lines_of(prepared, "mine"), lines_of(prepared)
    assert [x["table"] for x in mine] == ["skills"] * 2 + ["perplexity"] * 6 and len(base) == 6
    assert all(x["nats"] > 0 for x in mine)
    assert [(x["seed"], x["length"], x["tokens"]) for x in base] == [
        (n, end, count) for n in range(2) for end, count in ((16, 15), (32, 16), (64, 32))
    ]
    tokens = AutoTokenizer.from_pretrained(base_folder)(
        (prepared / "text" / "essays-test.txt").read_text(encoding="utf-8"), add_special_tokens=False
    ).input_ids
    rows = torch.tensor([tokens[:64], tokens[64:128]])
    for end, expected in perplexity_by_position(load_base(base_folder), rows, (16, 32, 64)).items():
        found = [x["nats"] for x in base if x["length"] == end]
        assert math.exp(sum(found) / 2) == pytest.approx(expected, rel=1e-4)


def test_reading_with_a_cache_loses_nothing(converted_folder, base_folder):
    model = TpttModel.from_pretrained(str(converted_folder)).eval()
    ids = [5 + (i * i) % 70 for i in range(50)]
    with torch.no_grad():
        found = torch.cat(list(perplexity.text_losses(model, ids, 16)))
    torch.testing.assert_close(found.float(), token_losses(model, torch.tensor([ids]))[0], rtol=1e-3, atol=1e-3)


def test_peak_memory_sees_what_was_held():
    with peak_memory() as found:
        held = torch.ones(32 << 18)
        del held
    if sys.platform == "linux":
        assert found.bytes is not None and 0.9 * (32 << 20) < found.bytes < 3 * (32 << 20)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("bass", "there is no arm 'bass'"),
        ("window@", "a window is a number of tokens"),
        ("snapkv@2", "the share that is kept"),
        ("mine=nowhere", "has no config.json"),
    ],
)
def test_a_wrong_arm_is_refused(prepared, base_folder, arm, words):
    with pytest.raises(SystemExit, match=words):
        bench.main(arguments(prepared, base_folder, arm))


@pytest.mark.parametrize(("flag", "value"), [("--tables", "rulers"), ("--tasks", "v"), ("--lengths", "12")])
def test_what_is_not_prepared_is_refused(prepared, base_folder, flag, value):
    with pytest.raises(SystemExit, match=f"there are no {flag[2:]} {value}"):
        bench.main([*arguments(prepared, base_folder), flag, value])
