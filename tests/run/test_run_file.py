from dataclasses import fields

import pytest

from tptt import MemoryConfig
from tptt.run.keys import keys
from tptt.run.options import RunOptions
from tptt.run.run_file import load_run
from tptt.train import TrainingSettings


@pytest.fixture
def file(tmp_path):
    """write(text) -> path of a run file."""

    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_every_field_is_one_key_and_says_what_it_is():
    own = [f.name for f in fields(RunOptions) if f.name not in ("memory", "training")]
    all_fields = [*own, *(f.name for kind in (MemoryConfig, TrainingSettings) for f in fields(kind))]
    assert len(set(all_fields)) == len(all_fields) and list(keys()) == all_fields
    assert [key.name for key in keys().values() if len(key.help.split()) < 4] == []


@pytest.mark.parametrize("kind", [RunOptions, MemoryConfig, TrainingSettings])
def test_the_docstring_says_what_the_fields_are(kind):
    text = " ".join(kind.__doc__.split())
    assert all(" ".join(f"{f.name}: {f.metadata['help']}".split()) in text for f in fields(kind) if f.metadata)
    assert "Raises:" in text


def test_flags_go_before_the_file_and_the_file_before_defaults(file):
    path = file("seed: 3\noperator: kda\nfacts: [2, 4]\noutput_dir: here\n# a remark\n")
    options = load_run(path, {"seed": "5", "memory_learning_rate": "2e-2"})
    assert (options.training.seed, options.memory.operator, options.training.facts) == (5, "kda", (2, 4))
    assert (options.base_model, options.output_dir, options.training.memory_learning_rate) == (None, "here", 0.02)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("tokens: 2e6", "tokens", 2_000_000),
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("learning_rate: 1E-3", "learning_rate", 1e-3),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("lora_alpha: 16", "lora_alpha", 16.0),
        ("layers: 2", "layers", 2),
        ("layers: auto", "layers", "auto"),
        ("layers: [0, 2]", "layers", (0, 2)),
        ("feature_width: [64, 128]", "feature_width", (64, 128)),
        ("lora_target_modules: [q_proj]", "lora_target_modules", ("q_proj",)),
        ("lora_target_modules: .*_proj", "lora_target_modules", ".*_proj"),
        ("data: 2e6.txt", "data", "2e6.txt"),
        ("bf16: null", "bf16", None),
        ("bf16: false", "bf16", False),
        ("max_self_attn_length: null", "max_self_attn_length", None),
    ],
)
def test_values_of_a_file(file, text, key, value):
    found = load_run(file(text)).flat()[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("tokens", "2e6", 2_000_000),
        ("learning_rate", "null", None),
        ("layers", "0,2", (0, 2)),
        ("layers", "[0, 2]", (0, 2)),
        ("layers", "2", 2),
        ("recall_formats", "passkey,records", ("passkey", "records")),
        ("lora_target_modules", "a,b", ("a", "b")),
        ("data", "null", None),
        ("resume_from_checkpoint", True, True),
        *(("data", text, text) for text in ("c/run #2", "# x", "a, b", '"q"', "a: b", "2024", "2e6", "null # x")),
    ],
)
def test_values_of_a_flag(key, given, value):
    assert load_run(None, {key: given}).flat()[key] == value


def test_the_resolved_file_gives_the_same_run(file):
    flags = {"layers": "[0, 1]", "max_self_attn_length": "32", "recall_formats": "passkey,records"}
    options = load_run(None, flags)
    assert load_run(file(options.to_yaml())) == options


def test_an_empty_file_is_the_defaults(file):
    assert load_run(file("# nothing\n")) == RunOptions()


def test_what_is_not_as_by_default():
    assert RunOptions().not_default() == {}
    assert RunOptions().changed(layers=(0,), seed=1).not_default() == {"layers": (0,), "seed": 1}


def test_a_base_config_lies_beside_its_file(file, tmp_path):
    assert load_run(file("base_config: bases/x.json")).base_config == str(tmp_path / "bases" / "x.json")
    assert load_run(None, {"base_config": "bases/x.json"}).base_config == "bases/x.json"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 3\nsead: 4", ["run.yaml line 2", "unknown key 'sead'", "did you mean 'seed'?"]),
        ("\nseed: four", ["run.yaml line 2: seed must be a valid integer, got 'four'"]),
        ("seed: true", ["seed must be a valid integer, got True"]),
        ("seed: 1.5", ["seed must be a valid integer, got 1.5"]),
        ("learning_rate: [1]", ["learning_rate must be a valid number or null, got [1]"]),
        ("learning_rate: '1e-3'", ["learning_rate must be a valid number or null, got '1e-3'"]),
        ("resume_from_checkpoint: 3", ["resume_from_checkpoint must be a valid boolean, got 3"]),
        ("facts: 3", ["facts must be a valid list, got 3"]),
        ("facts: [3, x]", ["facts must be a valid integer, got [3, 'x']"]),
        ("layers: 1.5", ["layers must be a valid string or a valid integer or a valid list, got 1.5"]),
        ("data: 2024", ["data must be a valid string or null, got 2024"]),
        ("max_self_attn_length: wide", ["must be an integer of 1 or more, 'auto' or None, got 'wide'", "line 1"]),
        ("warmup_steps: -1", ["warmup_steps must be a whole number of 0 or more, got -1", "run.yaml line 1"]),
        ("operator: magic", ["unknown operator 'magic'; valid are delta_rule,", "run.yaml line 1"]),
        ("dtype: float8", ["unknown dtype 'float8'; valid are auto, float32, bfloat16, float16", "run.yaml line 1"]),
        ("quantization: 4bit\nlora_r: 0", ["quantization 4bit freezes the base", "run.yaml line 2"]),
        ("lora_alpha: .inf", ["lora_alpha must be more than 0 and finite, got inf"]),
        ("lora_alpha: .nan", ["lora_alpha must be more than 0 and finite, got nan"]),
        ("lora_dropout: 1", ["lora_dropout must be a number in [0, 1), got 1.0"]),
        ("seed: 3\nseed: 4", ["run.yaml line 2: seed stands in", "line 1 already"]),
        ("- seed", ["holds lines of `key: value`"]),
        ("seed: [", ["is not valid YAML"]),
    ],
)
def test_a_bad_file_is_told_where_and_what_is_valid(file, text, parts):
    with pytest.raises(ValueError) as error:
        load_run(file(text))
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sead": "3"}, "flag --sead: unknown key 'sead'; did you mean 'seed'"),
        ({"seed": "many"}, "flag --seed: seed must be a valid integer, got 'many'"),
        ({"mag_weight": "2"}, r"mag_weight must be a number in \[0, 1\], got 2.*flag --mag-weight"),
        ({"feature_width": "64,65"}, "feature_width .* must be even, got 65.*flag --feature-width"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        load_run(None, flags)
