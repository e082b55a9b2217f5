import gzip
import json
from pathlib import Path

import pytest

from tptt.data import TextWarning, load_text
from tptt.data.files import read_file

LINES = [json.dumps({"text": f"row {i}"}) for i in range(40)]


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n".join(LINES) + '\n{"text": "cut', r"a.jsonl line 41: .* is one JSON object, this is not JSON"),
        ("a.jsonl", '"one"\n"two"\n', "a.jsonl line 1: a line of a .jsonl file is one JSON object"),
        ("a.csv", 'text,b\n1,2\n"cut\n', "a.csv cannot be read as a .csv table: .*EOF inside string"),
        ("a.parquet", "junk", "a.parquet cannot be read as a .parquet table: .*smaller than the minimum"),
        ("a.json", '[{"text": "a"}, ', "a.json cannot be read as a .json table"),
        ("a.bin", bytes(range(256)) * 40, "a.bin is no text: neither UTF-8 nor"),
        ("a.txt.gz", gzip.compress(b"some words\n" * 99), "a.txt.gz is no text.*unpack an archive"),
        ("a.txt", "слово за словом\n".encode("cp1251") * 99, "a.txt is no text.*convert another encoding"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_name(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_text(str(write(tmp_path / name, content)))


def test_brackets_in_a_path_are_no_pattern(tmp_path):
    path = write(tmp_path / "dir [v1] *" / "a?.jsonl", "\n".join(LINES))
    assert read_file(path, "text") == [f"row {i}" for i in range(40)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "ein Wörtchen\r\n\nnoch eins".encode(encoding))
    assert read_file(path, "text") == ["ein Wörtchen\n\nnoch eins"]


def test_single_letters_of_another_encoding_are_replaced(tmp_path):
    path = write(tmp_path / "a.txt", ("a word and a w\u00f6rd " * 20).encode("latin-1"))
    assert "a word and a w\ufffdrd" in read_file(path, "text")[0]


def test_a_folder_passes_over_what_is_no_text_and_refuses_what_is_damaged(tmp_path):
    write(tmp_path / "a.md", "words\n" * 900)
    write(tmp_path / "b.txt", bytes(range(256)))
    write(tmp_path / "c.csv", "")
    with pytest.warns(TextWarning) as told:
        assert set("".join(load_text(str(tmp_path)).train).split()) == {"words"}
    assert [str(w.message).split()[2].rpartition("/")[2] for w in told] == ["b.txt", "c.csv"]
    write(tmp_path / "d.jsonl", '{"text": "a"}\n{"te')
    with pytest.raises(ValueError, match="d.jsonl line 2"), pytest.warns(TextWarning):
        load_text(str(tmp_path))


def test_a_saved_data_set(tmp_path):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"text": [f"row {i}" for i in range(40)]})
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "several")
    DatasetDict(test=data).save_to_disk(tmp_path / "untrained")
    for name in ("one", "several", "several/test"):
        split = load_text(str(tmp_path / name))
        assert sorted(split.train + split.held_out) == sorted(data["text"])
    with pytest.raises(ValueError, match="no split 'train'; name the folder of one of its splits: test"):
        load_text(str(tmp_path / "untrained"))
    with pytest.raises(ValueError, match="no column 'body'; it has text"):
        load_text(str(tmp_path / "one"), column="body")
