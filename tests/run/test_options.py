from dataclasses import fields

import pytest

from tptt import MemoryConfig
from tptt.run.options import RunOptions, described_keys, flat_options, keys, load_run, parse_flags
from tptt.train import TrainingSettings


@pytest.fixture
def file(tmp_path):
    """write(text) -> path of a run file."""

    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_every_field_is_one_key():
    own = [f.name for f in fields(RunOptions) if f.name not in ("memory", "training")]
    all_fields = [*own, *(f.name for kind in (MemoryConfig, TrainingSettings) for f in fields(kind))]
    assert len(set(all_fields)) == len(all_fields) and set(keys()) == set(all_fields)
    assert [k for k, _, what in described_keys() if len(what) < 5] == []
    assert {k for k, _, _ in described_keys()} == set(keys())


def test_flags_win_over_the_file_and_the_file_over_defaults(file):
    path = file("per_device_train_batch_size: 3\noperator: kda\nfacts: [2, 4]\nout: here\n# a remark\n")
    options = load_run(
        *parse_flags([str(path), "--per-device-train-batch-size", "5", "--memory-learning-rate=2e-2"]),
        base_model_name="a",
        out="b",
    )
    assert (options.training.per_device_train_batch_size, options.memory.operator, options.training.facts) == (
        5,
        "kda",
        (2, 4),
    )
    assert (options.base_model_name, options.out, options.training.memory_learning_rate) == ("a", "here", 0.02)


def test_a_run_needs_no_file():
    flags = "--max_self_attn_length 64 --resume --layers 0,2 --data 2024 --tokens 2e6 --recall-formats all --learning-rate 1e-3"
    options = load_run(*parse_flags(flags.split()))
    assert options.resume and options.data == "2024" and options.memory.layers == (0, 2)
    assert options.training.tokens == 2_000_000 and options.training.learning_rate == 1e-3
    assert options.memory.max_self_attn_length == 64
    assert not load_run(*parse_flags(["--resume", "false"])).resume


@pytest.mark.parametrize("text", ["c/run #2", "# x", "a, b", '"q"', "a: b", "2024", "null # x"])
def test_text_is_taken_as_it_is(text):
    options = load_run(*parse_flags(["--out", text, f"--data={text}", "--layers", "[0, 1]", "--lora-targets", "a,b"]))
    assert (options.out, options.data, options.memory.layers, options.lora_targets) == (text, text, (0, 1), ("a", "b"))
    assert load_run(None, [("data", "null")]).data is None


def test_a_switch_takes_no_file_for_its_value(file):
    path = file("per_device_train_batch_size: 3")
    found, flags = parse_flags(["--resume", str(path)])
    assert found == path and flags == [("resume", "true")]


def test_the_resolved_file_gives_the_same_run(file):
    options = load_run(
        None, [("layers", "[0, 1]"), ("max_self_attn_length", "32"), ("recall_formats", "passkey,records")]
    )
    assert load_run(file(options.to_yaml())) == options


def test_an_empty_file_is_the_defaults(file):
    assert flat_options(load_run(file("# nothing\n"))) == flat_options(RunOptions())


def test_a_base_config_lies_beside_its_file(file, tmp_path):
    assert load_run(file("base_config: bases/x.json")).base_config == str(tmp_path / "bases" / "x.json")
    assert load_run(None, [("base_config", "bases/x.json")]).base_config == "bases/x.json"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "per_device_train_batch_size: 3\nper_device_train_batchsize: 4",
            [
                "run.yaml line 2",
                "unknown key 'per_device_train_batchsize'",
                "did you mean 'per_device_train_batch_size'",
            ],
        ),
        (
            "\nper_device_train_batch_size: four",
            ["run.yaml line 2", "per_device_train_batch_size must be a whole number, got 'four'"],
        ),
        ("per_device_train_batch_size: true", ["per_device_train_batch_size must be a whole number, got True"]),
        ("learning_rate: [1]", ["learning_rate must be a number or null, got [1]"]),
        ("resume: 3", ["resume must be true or false, got 3"]),
        ("facts: 3", ["facts must be a list (of each a whole number), got 3"]),
        ("max_self_attn_length: wide", ["max_self_attn_length must be a whole number or null, got 'wide'"]),
        (
            "per_device_train_batch_size: 0",
            ["per_device_train_batch_size must be a whole number of 1 or more, got 0", "run.yaml line 1"],
        ),
        ("operator: magic", ["unknown operator 'magic'; valid are delta_rule,", "run.yaml line 1"]),
        ("dtype: float8", ["unknown dtype 'float8'; valid are auto, float32, bfloat16, float16"]),
        ("hardware: abacus", ["unknown hardware 'abacus'; valid are null, t4, rtx-4090, 80gb, cpu"]),
        ("quantization: 4bit\nlora_rank: 0", ["quantization 4bit freezes the base", "run.yaml line 2"]),
        ("lora_alpha: .inf", ["lora_alpha must be more than 0 and finite, got inf"]),
        ("lora_alpha: .nan", ["lora_alpha must be more than 0 and finite, got nan"]),
        ("lora_dropout: 1", ["lora_dropout must be a number in [0, 1), got 1.0"]),
        (
            "per_device_train_batch_size: 3\nper_device_train_batch_size: 4",
            ["run.yaml line 2: per_device_train_batch_size stands in", "line 1 already"],
        ),
        ("- per_device_train_batch_size", ["holds lines of `key: value`"]),
        ("per_device_train_batch_size: [", ["is not valid YAML"]),
    ],
)
def test_a_bad_file_is_told_where_and_what_is_valid(file, text, parts):
    with pytest.raises(ValueError) as error:
        load_run(file(text))
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--per-device-train-batchsize", "3"],
            "flag --per-device-train-batchsize: unknown key 'per_device_train_batchsize'; did you mean 'per_device_train_batch_size'",
        ),
        (["--per-device-train-batch-size"], "flag --per-device-train-batch-size needs a value"),
        (["--per-device-train-batch-size", "--resume"], "flag --per-device-train-batch-size needs a value"),
        (
            ["--per-device-train-batch-size", "many"],
            "flag --per-device-train-batch-size: per_device_train_batch_size must be a whole number, got 'many'",
        ),
        (["--mag-weight", "2"], r"mag_weight must be a number in \[0, 1\], got 2.*flag --mag-weight"),
        (["a.yaml", "b.yaml"], "one run file at most, got a.yaml, b.yaml"),
    ],
)
def test_bad_flags(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_run(*parse_flags(arguments))
