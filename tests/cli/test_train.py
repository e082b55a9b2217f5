import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from benchmarks.configs import CONFIGS
from tptt.cli.main import app
from tptt.run.keys import keys


@pytest.fixture(scope="module")
def base(make_base):
    return make_base(128)


@pytest.fixture
def run_file(base, tmp_path):
    """A small run, as a file."""
    path = tmp_path / "run.yaml"
    keys = {
        "base_model": str(base),
        "data": str(base / "text.txt"),
        "output_dir": str(tmp_path / "out"),
        "seq_len": 128,
        "per_device_train_batch_size": 2,
        "tokens": 6 * 2 * 128,
        "max_self_attn_length": 16,
        "lora_r": 2,
        "recall_formats": ["records"],
        "probe_steps": 3,
        "save_steps": 2,
    }
    path.write_text(yaml.safe_dump(keys))
    return path


def invoke(*arguments):
    run = CliRunner().invoke(app, ["train", *map(str, arguments)])
    return run.exit_code, " ".join(run.output.split())


def test_a_run_from_its_file_to_its_folder_and_on(run_file, tmp_path):
    code, output = invoke(run_file, "--lora-r", 3, "--memory_learning_rate=2e-2")
    assert code == 0, output
    out = tmp_path / "out"
    resolved = yaml.safe_load((out / "run.yaml").read_text())
    assert (resolved["lora_r"], resolved["memory_learning_rate"], resolved["operator"]) == (3, 0.02, "delta_rule")
    report = (out / "report.md").read_text()
    for part in (
        "| lora_r | `3` |",
        "## Warnings",
        "recall beyond W: memory only",
        "| layer with a memory | width | mu |",
        "at step 6.",
    ):
        assert part in report
    assert "| 3 |" in report and "| 6 |" in report and "step 3: recall beyond, both" in output
    assert "bypassed" in report and "warning: the memory is bypassed" in output  # six steps teach nothing
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert model.config.lora_config["r"] == 3
    assert sorted(model.config.lora_config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    ids = AutoTokenizer.from_pretrained(out)("bacex", return_tensors="pt").input_ids
    assert model(input_ids=ids).logits.isfinite().all()

    code, output = invoke(out / "run.yaml")
    assert code == 1 and "is not empty; name another folder, or resume" in output
    code, output = invoke(out / "run.yaml", "--resume-from-checkpoint", "--tokens", 8 * 2 * 128)
    assert code == 0, output
    assert "at step 8." in (out / "report.md").read_text()
    assert not yaml.safe_load((out / "run.yaml").read_text())["resume_from_checkpoint"]
    code, output = invoke(out / "run.yaml", "--dry-run", "--hardware", "cpu")
    assert code == 0, output


def test_the_configuration_and_split_of_a_data_set(run_file, base, tmp_path):
    table = (base / "table.csv").read_text(encoding="utf-8")
    (tmp_path / "set").mkdir()
    for name in ("train", "test"):
        (tmp_path / "set" / f"{name}.csv").write_text(table, encoding="utf-8")
    where = ("--data", tmp_path / "set", "--column", "words", "--tokens", 256, "--save-steps", 0)
    code, output = invoke(run_file, *where, "--data-config-name", "raw")
    assert code == 1 and "has no configuration 'raw'; it has default" in output
    code, output = invoke(run_file, *where, "--data-split", "dev")
    assert code == 1 and "has no split 'dev'; it has train, test" in output
    code, output = invoke(run_file, *where, "--data-split", "test")
    assert code == 0, output


def test_the_column_of_a_table(run_file, base):
    code, output = invoke(run_file, "--data", base / "table.csv", "--column", "letters", "--tokens", 256)
    assert code == 1 and "has no column 'letters'; it has words" in output
    code, output = invoke(
        run_file, "--data", base / "table.csv", "--column", "words", "--tokens", 256, "--save-steps", 0
    )
    assert code == 0, output


def test_a_run_that_diverges_fails(run_file):
    code, output = invoke(
        run_file, "--learning-rate", 1e30, "--memory-learning-rate", 1e30, "--tokens", 512, "--save-steps", 0
    )
    assert code == 1 and "warning: the training diverged" in output and "bypassed" not in output


def test_a_folder_s_table_without_the_column_is_named(run_file, base, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "text.txt").write_text((base / "text.txt").read_text())
    (data / "table.csv").write_text("words\n" + "one\n" * 40)
    code, output = invoke(run_file, "--data", data, "--tokens", 256, "--save-steps", 0, "--probe-steps", 0)
    assert code == 0 and "table.csv has no column 'text'; it has words" in output and "warning: passed over" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seq-len", "x"), "error: flag --seq-len: seq_len must be a valid integer or null, got 'x'"),
        (("--hardware", "abacus", "--dry-run"), "unknown hardware 'abacus'; valid are null, t4, rtx-4090, 80gb, cpu"),
        (("--data", "no-such-file.txt"), "no-such-file.txt"),
        (("--base-model", "no/such-base"), "base model 'no/such-base' was not found"),
        (("--attn-implementation", "flash_attention_2"), "FlashAttention2"),  # which is not installed here
        (("--layers", "7"), "layers=7 chooses none of the 2 layers with attention"),
    ],
)
def test_bad_runs_are_told_and_write_nothing(run_file, tmp_path, arguments, message, monkeypatch):
    def offline(name, config_name):
        raise FileNotFoundError(f"no data set {name}")

    monkeypatch.setattr("datasets.load_dataset_builder", offline)
    code, output = invoke(run_file, *arguments)
    assert code == 1 and message in output
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_resumed(run_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, output = invoke(run_file, "--resume-from-checkpoint")
    assert code == 1 and "holds no checkpoint to go on from" in output
    (tmp_path / "file").write_text("")
    code, output = invoke(run_file, "--output-dir", tmp_path / "file")
    assert code == 1 and "is a file, it must be a folder" in output


def test_4_bits_without_bitsandbytes(run_file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, output = invoke(run_file, "--quantization", "4bit")
    assert code == 1 and "4bit needs bitsandbytes, which is not installed" in output


def test_a_dry_run_trains_nothing(run_file, tmp_path):
    code, output = invoke(run_file, "--dry-run", "--kl-weight", 0.1)
    assert code == 0, output
    for part in (
        "1,536 in 6 steps of 256",
        "AdamW states",
        "teacher",
        "T4 16 GB",
        "131,072",
        "measured with the embedded base: recall beyond the window",
        "this run is another, so that this is an extrapolation",
    ):
        assert part in output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_a_base_that_is_not_here():
    code, output = invoke(CONFIGS / "gemma-3-270m.yaml", "--dry-run", "--hardware", "t4")
    assert code == 0, output
    assert "base 268,098,176" in output and "no bfloat16; set dtype to float16" in output
    assert "the run is not computed there as it is; with dtype: float16 it takes" in output
    code, output = invoke(CONFIGS / "qwen3-8b.yaml", "--dry-run", "--hardware", "t4", "--dtype", "float16")
    assert code == 0 and "does not fit: it takes" in output
    assert "with quantization: 4bit, seq_len: 1024, gradient_accumulation_steps: 16 it takes" in output
    code, output = invoke(CONFIGS / "qwen3-8b.yaml", "--dry-run", "--hardware", "t4", "--lora-r", 0)
    assert code == 0 and "no change of keys that is known here makes it fit: take a smaller base" in output


def test_help_lists_every_key_with_its_default():
    run = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    words = " ".join(re.sub("[\u2500-\u257f]", " ", run.output).split())
    assert run.exit_code == 0
    for key in keys().values():
        assert f"--{key.name.replace('_', '-')} " in words
    assert words.count("Default:") == len(keys())
    for part in ("Keys of the run", "Keys of the memory", "Keys of the training", "--dry-run", "--debug", "138"):
        assert part in words
    assert "Scale of LoRA: its product is multiplied by lora_alpha / lora_r. Default: 16.0." in words


def test_an_unknown_flag_is_told_with_the_nearest_one():
    code, output = invoke("--sead", 3)
    assert code == 2 and "No such option: --sead" in output and "--seed" in output


def test_a_switch_takes_no_file_for_its_value(run_file, tmp_path):
    code, output = invoke("--resume-from-checkpoint", run_file, "--dry-run", "--hardware", "cpu")
    assert code == 0 and "1,536 in 6 steps" in output, output


@pytest.mark.parametrize("arguments", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_where_an_error_happened(arguments):
    run = CliRunner().invoke(app, [*arguments, "--seed", "x"])
    assert isinstance(run.exception, ValueError) and "seed must be a valid integer" in str(run.exception)
    told = CliRunner().invoke(app, ["train", "--seed", "x"])
    assert told.exit_code == 1 and isinstance(told.exception, SystemExit)
    assert "error: flag --seed: seed must be a valid integer, got 'x'" in told.output and "--debug" in told.output


def test_progress_lines_go_to_a_file(run_file, tmp_path):
    """Where the output is no terminal, lines say what the run does and how far it is."""
    script = f"""
import tptt.progress
tptt.progress.SILENT = tptt.progress.EVERY = 0.0
import tptt.train.report_steps
tptt.train.report_steps.EVERY = 0.0
from typer.testing import CliRunner
from tptt.cli.main import app
from tptt.run.keys import keys
app(["train", {str(run_file)!r}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d\d:\d\d:\d\d training: 4 of 6 steps \(67 %\) after \d+ s$", done.stderr, re.M), done.stderr
    assert re.search(r"^\d\d:\d\d:\d\d training: step 6 of 6: loss \d+\.\d{3}$", done.stderr, re.M), done.stderr
    assert re.search(r"^  step +6: recall beyond, both ", done.stdout, re.M), done.stdout


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_a_base_with_code_of_its_own(run_file, base, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(base, folder)
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config | own | {"architectures": ["OwnModel"]}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | own))
    short = ("--base-model", folder, "--tokens", 256, "--save-steps", 0, "--probe-steps", 0)
    code, output = invoke(run_file, *short, "--no-trust-remote-code")
    assert code == 1 and "trust_remote_code" in output
    code, output = invoke(run_file, *short, "--trust-remote-code")
    assert code == 0, output
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["trust_remote_code"] is True
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).inner.config.model_type == "own"
    )
