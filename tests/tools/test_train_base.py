"""The script that makes the embedded base runs, from the text to the model card."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.train_base import train as train_base
from tptt.data import FORMATS, IGNORE, KeyValueRecall, Lexicon, RecallTask, RecallVocabulary, TextSplit, tokenize

SHAPE = {
    "--hidden-size": 32,
    "--layers": 2,
    "--heads": 2,
    "--kv-heads": 1,
    "--intermediate-size": 48,
    "--vocab-size": 1024,
    "--length": 128,
    "--rows": 2,
    "--recall-rows": 1,
    "--minutes": 0.02,
    "--device": "cpu",
}


@pytest.fixture(scope="module")
def split():
    documents = [text for text in topics.values() if len(text) > 2000]
    return TextSplit(documents[4:20], documents[:4])


def run(out, split, monkeypatch, **options):
    """Call the script as the shell does; returns its record."""
    given = SHAPE | {"--out": out} | {f"--{k}": v for k, v in options.items()}
    monkeypatch.setattr(train_base, "stdlib_text", lambda: split)
    monkeypatch.setattr(sys, "argv", ["train_base", *(str(x) for pair in given.items() for x in pair)])
    train_base.main()
    return json.loads((out / "training.json").read_text())


def test_from_text_to_card_and_on_from_there(tmp_path, split, monkeypatch):
    record = run(tmp_path / "base", split, monkeypatch)
    assert record["steps"] > 1 and record["tokens"] == record["steps"] * 2 * 128
    assert set(record["recall_by_format"]) == set(FORMATS)
    assert 1 < record["perplexity"] < 1200 and record["trigram_perplexity"] < record["unigram_perplexity"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 2)
    assert tokenizer.decode(tokenizer("The capital of x1 is\n\t y.")["input_ids"]) == "The capital of x1 is\n\t y."
    with torch.no_grad():
        assert torch.isfinite(
            model(**tokenizer("def f(x):", return_tensors="pt", return_token_type_ids=False)).logits
        ).all()
    card = (tmp_path / "base" / "README.md").read_text()
    assert f"A {record['parameters']:,}-parameter Llama" in card and "| passkey |" in card and "went on" not in card

    later = run(tmp_path / "more", split, monkeypatch, init=tmp_path / "base", begin=0.9, workers=2)
    assert later["earlier"] == record
    assert "It went on (`--init`)" in (tmp_path / "more" / "README.md").read_text()


def test_the_curriculum_covers_the_whole_training(split):
    stages = train_base.CURRICULUM
    assert [s.end for s in stages] == sorted({s.end for s in stages}) and stages[-1].end == 1.0
    tokenizer = train_base.build_tokenizer(split.train, 1024)
    stream = tokenize(tokenizer, split.train)
    args = type("Args", (), {"length": 128, "rows": 4, "recall_rows": 2, "seed": 0})
    drills = RecallTask(tokenizer, Lexicon.of(split.train), stream)
    batches = train_base.Batches(stream, KeyValueRecall(RecallVocabulary(tokenizer), stream), drills, args)
    for begin, stage in zip((0.0, *(s.end for s in stages)), stages, strict=False):
        ids, weights = batches.draw((begin + stage.end) / 2, torch.Generator().manual_seed(0))
        rows = 4 * stage.shorter
        assert ids.shape == weights.shape == (rows, 128 // stage.shorter)
        recall = 2 if stage.recall is None else round(rows * stage.recall)
        assert int((weights.amin(1) < 1).sum()) == recall
        assert IGNORE not in ids


def test_it_is_called_as_its_docstring_says():
    command = [sys.executable, "-m", "tools.train_base.train", "--help"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "--intermediate-size" in done.stdout, done.stderr
    assert f"python {' '.join(command[1:3])}" in train_base.__doc__
