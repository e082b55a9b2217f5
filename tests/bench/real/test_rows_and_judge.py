"""Rows keep what they say on the way through a file; answers are judged as RULER judges."""

import math
from dataclasses import replace

import pytest

from benchmarks.real.draws import Draws
from benchmarks.real.judge import cleaned, mean, score, standard_error
from benchmarks.real.rows import Row, cell_file, cells, prompt_of, read_rows, write_rows

ROW = Row("ruler", "vt", 1024, 3, "test", "long é\u2028\n", "ask?", " Answer:", ["a", "b"], "all", 30)


def test_rows_return_from_their_file(tmp_path):
    rows = [ROW, replace(ROW, seed=4, context="other")]
    file = cell_file(tmp_path, "base", "test", "ruler", "vt", 1024)
    assert file.relative_to(tmp_path).as_posix() == "rows/base/test/ruler-vt-1024.jsonl"
    write_rows(file, rows)
    assert read_rows(file) == rows and len(file.read_bytes().splitlines()) == 2
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    write_rows(cell_file(tmp_path, "base", "test", "skills", "squad", 512), [ROW])
    assert cells(tmp_path, "base", "test") == [("skills", "squad", 512), ("ruler", "vt", 1024)]
    assert cells(tmp_path, "base", "dev") == []


def test_what_is_no_row_is_refused(tmp_path):
    file = tmp_path / "a-b-1.jsonl"
    with pytest.raises(FileNotFoundError, match="benchmarks.real prepare"):
        read_rows(file)
    write_rows(file, [ROW])
    file.write_text(file.read_text(encoding="utf-8") + '{"table": "ruler"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 of .*a-b-1.jsonl is no row: its fields are table"):
        read_rows(file)
    for change, text in (
        ({"split": "train"}, "none of dev, test"),
        ({"judge": "some"}, "none of all, any"),
        ({"task": "a-b"}, "small letters"),
        ({"answers": []}, "needs references"),
        ({"answers": [""]}, "needs references"),
    ):
        with pytest.raises(ValueError, match=text):
            replace(ROW, **change)


def test_a_prompt_is_the_template_with_the_prefix(tokenizer):
    text = prompt_of(ROW, tokenizer)
    if tokenizer.chat_template:
        assert text == f"<s> user\n{ROW.context}ask? </s>\n<s> assistant\n Answer:"
    else:
        assert text == f"{ROW.context}ask? Answer:"


def test_scores_against_hand_made_ones():
    assert score("It is ABC and def.", ["abc", "DEF", "ghi", "jkl"], "all") == 0.5
    assert score("It is ABC and def.", ["ghi", "def"], "any") == 1.0
    assert score("nothing", ["ghi", "def"], "any") == 0.0
    assert score("12345671", ["1234567"], "all") == 1.0  # RULER asks for containment, no more
    assert score("one\x02two", ["one\ntwo"], "any") == 1.0
    assert cleaned(" \x00a\tb\x1f\n ") == "a\nb"
    with pytest.raises(ValueError, match="no judge 'best'; there are all, any"):
        score("a", ["a"], "best")
    with pytest.raises(ValueError, match="without a reference"):
        score("a", [], "all")


def test_mean_and_standard_error():
    assert mean([0, 0.5, 1]) == 0.5
    assert math.isclose(standard_error([0, 0, 1, 1]), math.sqrt(1 / 3 / 4))
    assert standard_error([1.0]) is None and standard_error([1.0, 1.0]) == 0
    with pytest.raises(ValueError, match="no scores"):
        mean([])


def test_draws_are_the_same_everywhere():
    draws = Draws("ruler", "vt", 1024, 0)
    assert [draws.below(1000) for _ in range(5)] == [948, 195, 188, 205, 530]
    assert Draws("a", 1).shuffled(range(50)) == Draws("a", 1).shuffled(range(50)) != Draws("a", 2).shuffled(range(50))
    assert sorted(Draws("a").shuffled(range(50))) == list(range(50))
    assert Draws("a").sample(range(50), 5) == Draws("a").sample(range(50), 20)[:5]
    assert {Draws(i).between(3, 5) for i in range(50)} == {3, 4, 5}
    with pytest.raises(ValueError, match="6 of 5 items"):
        Draws("a").sample(range(5), 6)
