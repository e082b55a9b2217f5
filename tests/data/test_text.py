import json

import pytest
import torch
from transformers import AutoTokenizer

from tptt.assets import BASE
from tptt.data import load_text, pack_rows, stdlib_text, tokenize


def test_stdlib_splits_by_module():
    split = stdlib_text()
    assert len(split.train) > 10 * len(split.held_out) > 0
    assert split.characters > 5_000_000
    assert not set(split.train) & set(split.held_out)


def test_files_tables_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(9000)))
    split = load_text(str(tmp_path / "a.txt"))
    assert "line 0\n" in "".join(split.train + split.held_out) and split.held_out
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(50)))
    table = load_text(str(tmp_path / "b.jsonl"))
    assert sorted(table.train + table.held_out) == sorted(f"row {i}" for i in range(50))
    assert load_text(str(tmp_path)).characters == split.characters + table.characters
    with pytest.raises(ValueError, match="no column 'body'; it has text"):
        load_text(str(tmp_path / "b.jsonl"), column="body")


def test_short_text_is_still_split(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    split = load_text(str(tmp_path / "a.txt"))
    assert split.train == ["x" * 90] and split.held_out == ["x" * 10]


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_text(str(tmp_path / "nowhere"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        load_text(str(tmp_path / "empty.txt"))


def test_tokenize_and_pack():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    stream = tokenize(tokenizer, ["import os\n"] * 100)
    one = tokenizer("import os\n")["input_ids"] + [tokenizer.eos_token_id]
    assert stream.tolist() == one * 100
    assert len(tokenize(tokenizer, ["import os\n"] * 1000, limit=50)) == 50
    rows = pack_rows(stream, 7)
    assert torch.equal(rows.flatten(), stream[: rows.numel()]) and rows.shape[1] == 7
    with pytest.raises(ValueError, match="one row needs"):
        pack_rows(stream[:3], 7)
