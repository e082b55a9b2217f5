import json

import pytest

from tptt.data import load_text, stdlib_text
from tptt.data.text import split_by_name


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
    (tmp_path / "one.txt").write_text("x")
    with pytest.raises(ValueError, match="held out"):
        load_text(str(tmp_path / "one.txt"))


def test_empty_cells_are_no_text(tmp_path):
    cells = ["a word", None, "another"] * 20
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": c}) + "\n" for c in cells))
    split = load_text(str(tmp_path / "a.jsonl"))
    assert set(split.train + split.held_out) == {"a word", "another"}


def test_folders_pass_over_hidden_files_and_take_any_case(tmp_path):
    (tmp_path / ".venv").mkdir()
    for name in (".venv/a.py", ".b.md", "c.TXT", "d.md", "e.bin"):
        (tmp_path / name).write_text(f"text of {name}\n")
    split = load_text(str(tmp_path))
    assert sorted(split.train + split.held_out) == ["text of c.TXT\n", "text of d.md\n"]


def test_a_document_never_changes_sides():
    some = split_by_name((str(i), f"text {i}") for i in range(100))
    more = split_by_name((str(i), f"text {i}") for i in reversed(range(200)))
    assert set(some.train) <= set(more.train) and set(some.held_out) <= set(more.held_out)
    assert some.held_out


def test_a_folder_passes_over_tables_without_text(tmp_path):
    (tmp_path / "a.md").write_text("words\n" * 900)
    (tmp_path / "config.json").write_text(json.dumps({"size": 3}))
    with pytest.warns(UserWarning, match="passed over: .*config.json has no column 'text'; it has size"):
        split = load_text(str(tmp_path))
    assert "size" not in "".join(split.train + split.held_out)
