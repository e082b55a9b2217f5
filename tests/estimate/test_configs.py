"""The runs in configs/: the bases that they name, and the figures in their files."""

import json
from pathlib import Path

import pytest

from benchmarks.configs import CONFIGS, HEAD, with_comments
from tptt.estimate.fit import ways_to_fit
from tptt.estimate.survey import Survey
from tptt.run.base import config_from_file
from tptt.run.run_file import load_run

RUNS = sorted(CONFIGS.glob("*.yaml"))


def test_4_bits_reach_linear_layers_only():
    dense, experts = (load_run(CONFIGS / f"{n}.yaml", {"quantization": "4bit"}) for n in ("olmo-2-1b", "olmoe-1b-7b"))
    survey = Survey(dense)
    embeddings, norms = 2 * 100352 * 2048, (16 * 4 + 1) * 2048  # four in each of 16 layers, of queries and keys too
    assert survey.parameters.base - survey.parameters.linear == embeddings + norms
    sparse = Survey(experts)
    assert sparse.parameters.linear < 0.05 * sparse.parameters.base
    # so that they are no way to fit a model of experts
    assert "quantization" not in ways_to_fit(experts.changed(quantization="none"), "t4", sparse)


# what the makers say, in parameters: total, and multiplied per token where it is another
PUBLISHED = {
    "llama-3.2-1b": (1.24e9, None),
    "llama-3.2-3b": (3.21e9, None),
    "qwen2.5-1.5b": (1.54e9, None),
    "qwen3-1.7b": (1.72e9, None),
    "qwen3-8b": (8.19e9, None),
    "gemma-3-270m": (268e6, None),
    "gemma-3-1b": (999_885_952, None),
    "olmo-2-1b": (1.48e9, None),
    "olmoe-1b-7b": (6.92e9, 1.2e9),
    "mistral-7b": (7.25e9, None),
}


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_run_has_the_base_that_it_names(path):
    options, text = load_run(path), path.read_text()
    found = Survey(options).parameters
    total, active = PUBLISHED[path.stem]
    assert found.base == pytest.approx(total, rel=0.005)  # published with three digits
    if active is not None:
        assert found.active == pytest.approx(active, rel=0.05)  # with two
    remarks = json.loads(Path(options.base_config).read_text())
    assert remarks["_base"] == options.base_model and remarks["_source"]
    assert f"base {found.base:,}, LoRA {found.lora:,}, memory {found.memory:,}" in text
    assert (
        "# Not trained here: no hub and no GPU; the figures are computed from the model's config by `tptt train "
        in text
    )


def test_there_is_a_run_for_every_base():
    assert {p.stem for p in RUNS} == set(PUBLISHED) == {p.stem for p in (CONFIGS / "bases").glob("*.json")}


@pytest.mark.parametrize(
    "path",
    [p if p.stem == "gemma-3-270m" else pytest.param(p, marks=pytest.mark.slow) for p in RUNS],
    ids=lambda p: p.stem,
)
def test_the_figures_in_the_files_are_true(path):
    assert with_comments(path).partition(HEAD)[2] == path.read_text().partition(HEAD)[2]


def test_a_file_that_is_no_configuration(tmp_path):
    path = tmp_path / "x.json"
    for text in ("{", "[]", "{}", '{"model_type": "none"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="x.json is no model's configuration"):
            config_from_file(path)
    with pytest.raises(OSError):
        config_from_file(tmp_path / "y.json")
