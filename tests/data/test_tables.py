import json

import pytest

from tests.data.files import jsonl, write
from tptt.data import load_text
from tptt.data.tables import table_rows

ROWS = [f"row {i}" for i in range(40)]
LINES = jsonl(ROWS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", LINES + '{"text": "cut', r"a.jsonl line 41: .* is one JSON object, this is not JSON"),
        ("a.jsonl", '"one"\n"two"\n', "a.jsonl line 1: a line of a .jsonl file is one JSON object"),
        ("a.jsonl", LINES.encode("utf-16"), "a.jsonl is UTF-16: a table is read as UTF-8"),
        ("a.csv", 'text,b\n1,2\n"cut\n', "a.csv cannot be read as a .csv table: .*EOF inside string"),
        ("a.parquet", "junk", "a.parquet cannot be read as a .parquet table: .*smaller than the minimum"),
        ("a.json", '[{"text": "a"}, ', "a.json cannot be read as a .json table"),
        ("a.json", "3", "a.json is no table: a .json file holds objects with the same keys"),
        ("a.jsonl", jsonl(ROWS, "body"), "a.jsonl has no column 'text'; it has body"),
        ("a.jsonl", jsonl([["a", "b"]] * 9), "column 'text' of .*a.jsonl holds a list in each row, not text"),
        ("a.jsonl", jsonl([None, ""] * 9), "no text; readable are .txt, .md, .* and data sets"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_name(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_text(str(write(tmp_path / name, content)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.csv", "a.parquet"])
def test_every_kind_of_table(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_dict({"text": ROWS, "number": list(range(40))}).to_parquet(str(path))
    else:
        content = {"json": json.dumps([{"text": row} for row in ROWS]), "csv": "text\n" + "\n".join(ROWS)}
        write(path, content.get(path.suffix[1:], LINES))
    split = load_text(str(path))
    assert sorted([*split.train, *split.held_out]) == sorted(ROWS)
    assert list(split.held_out) == list(split.held_out)
    orders = [list(split.train.shuffled(seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(split.train)


def test_a_byte_order_mark_of_utf_8_is_passed_over(tmp_path):
    assert list(table_rows(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINES.encode("utf-8")), "text")) == ROWS


def test_brackets_in_a_path_are_no_pattern(tmp_path):
    path = write(tmp_path / "dir [v1] *" / "a?.jsonl", LINES)
    assert list(table_rows(path, "text")) == ROWS
    split = load_text(str(path))
    assert sorted([*split.train, *split.held_out]) == sorted(ROWS)


def test_empty_cells_are_no_text_and_numbers_are(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(["a word", None, " ", "another"]) + jsonl([]))
    assert list(table_rows(path, "text")) == ["a word", "another"]
    assert list(table_rows(write(tmp_path / "a.csv", "text\n12\n13\n"), "text")) == ["12", "13"]


def test_damage_further_on_is_told_when_it_is_read(tmp_path, monkeypatch):
    """Of more than a thousand rows the rest is not looked at before."""
    texts = (f"a text {i} of some words " * 400 for i in range(1200))
    path = write(tmp_path / "a.jsonl", jsonl(texts) + '{"text": "cut')
    split = load_text(str(path))
    with pytest.raises(ValueError, match=r"a.jsonl line 1201: a line .* is one JSON object"):
        list(split.train)


def test_a_long_row_comes_in_pieces(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(100_000))
    split = load_text(str(write(tmp_path / "a.jsonl", jsonl([lines, *[lines + str(i) for i in range(20)]]))))
    pieces = list(split.train)
    assert max(map(len, pieces)) < 400_000 and sum(map(len, pieces)) > 15 * len(lines)
    assert all(piece.endswith("\n") or piece.split()[-1].isdigit() for piece in pieces)
