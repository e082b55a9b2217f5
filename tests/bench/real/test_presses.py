"""The worker with kvpress: what it answers and holds. A small press stands for kvpress, which is not installed here."""

import sys

import pytest
from transformers import AutoTokenizer

from benchmarks.real.arms import Arm, load_base
from benchmarks.real.greedy import answer
from benchmarks.real.presses import PRESSES, press_answers
from benchmarks.real.prompts import Prompt
from benchmarks.record import SOURCES

from .models import row, write_base

KVPRESS = '''
from contextlib import contextmanager
import torch

class SnapKVPress:
    """Keeps the last tokens, or hides the first ones of the first head."""
    def __init__(self, compression_ratio):
        self.kept = 1 - compression_ratio

    def hook(self, module, args, kwargs, output):
        layer = (kwargs.get("cache") or kwargs["past_key_values"]).layers[module.layer_idx]  # by version
        first = layer.keys.shape[2] - int(self.kept * layer.keys.shape[2])
        layer.keys, layer.values = (x[:, :, first:].contiguous() for x in (layer.keys, layer.values))

    @contextmanager
    def __call__(self, model):
        print("a message", flush=True)
        hooks = [x.self_attn.register_forward_hook(self.hook, with_kwargs=True) for x in model.model.layers]
        yield
        for hook in hooks:
            hook.remove()

class KVzipPress(SnapKVPress):
    def hook(self, module, args, kwargs, output):
        layer = (kwargs.get("cache") or kwargs["past_key_values"]).layers[module.layer_idx]  # by version
        first = layer.keys.shape[2] - int(self.kept * layer.keys.shape[2])
        layer.keys, layer.values = (torch.cat([x, x], 2)[:, :, : x.shape[2]] for x in (layer.keys, layer.values))
        module.masked_key_indices = ([0] * first, [0] * first, list(range(first)))

class TOVAPress:
    def __init__(self, compression_ratio):
        raise RuntimeError("out of order" + "!" * 200_000)
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that has the small press, and a version of kvpress."""
    folder = tmp_path_factory.mktemp("kvpress")
    (folder / "kvpress.py").write_text(KVPRESS, encoding="utf-8")
    (folder / "kvpress-0.dist-info").mkdir()
    (folder / "kvpress-0.dist-info" / "METADATA").write_text("Name: kvpress\nVersion: 0\n", encoding="utf-8")
    file = folder / "python"
    file.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n', encoding="utf-8")
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def rows(base_folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    return [(one, Prompt.of(one, tokenizer)) for one in (row(0), row(1, answers=["w9"], judge="any"))]


def test_a_press_that_keeps_all_answers_as_the_base(python, base_folder, rows):
    model, tokenizer = load_base(base_folder), AutoTokenizer.from_pretrained(base_folder)
    for one, found in press_answers(python, base_folder, "snapkv", 1.0, rows):
        prompt = Prompt.of(one, tokenizer)
        expected = answer(model, tokenizer, prompt, one.max_new_tokens)
        assert (found["text"], found["tokens"]) == (expected.text, expected.tokens)
        assert found["bytes_at_question"] == expected.bytes_at_question
        assert found["versions"]["kvpress"] == "0"


@pytest.mark.parametrize("press", ["snapkv", "kvzip"])
def test_bytes_are_those_of_what_is_kept(python, base_folder, rows, press):
    """Two layers, keys and values of 8 floats; the press that hides does so in one of two heads."""
    for (_, prompt), (_, found) in zip(rows, press_answers(python, base_folder, press, 0.5, rows), strict=True):
        kept, all_of_head = int(0.5 * len(prompt.context)), len(prompt.context)
        pairs = 2 * kept if press == "snapkv" else kept + all_of_head
        assert found["bytes_at_question"] == pairs * 2 * 2 * 8 * 4


def test_a_worker_that_ends_says_why(python, base_folder, rows):
    with pytest.raises(RuntimeError, match="out of order"):
        list(press_answers(python, base_folder, "tova", 0.5, rows))


def test_arms_of_presses():
    for name in PRESSES:
        arm = Arm.read(f"{name}@0.25")
        assert (arm.kind, arm.press, arm.share) == ("press", name, 0.25)


def test_the_worker_counts_among_the_sources():
    assert {"benchmarks/real/presses_worker.py", "benchmarks/real/presses.py"} <= set(SOURCES["real"])
