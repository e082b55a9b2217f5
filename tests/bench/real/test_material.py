"""Sources are read as they are written, and no part shares text with another."""

import json

import pytest

from benchmarks.real.material import related, runs, titles, unshared
from benchmarks.real.rows import SPLITS
from benchmarks.real.sources import read_essays, read_hotpotqa, read_squad, read_templates, sentences, title_of
from benchmarks.real.texts import spread, text_files, write_texts

from .conftest import QUESTIONS


def held(texts):
    return {run for text in texts for run in runs(text)}


def test_templates_are_read_and_not_run(data_folder, tmp_path):
    found = read_templates(data_folder / "constants.py")
    assert found["niah"].tokens_to_generate == 24 and found["qa"].answer_prefix == " Answer:"
    other = tmp_path / "other.py"
    other.write_text("raise SystemExit\nROWS = {}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no table TASKS"):
        read_templates(other)


def test_essays_begin_at_their_dates(tmp_path):
    texts = [
        "May 2001One is so. In June 1998 it was.",
        "March 2008, rev. June 2008Two (May 2005).\n",
        "July 2009  \n  \nThree.",
    ]
    (tmp_path / "e.json").write_text(json.dumps({"text": "".join(texts)}), encoding="utf-8")
    assert read_essays(tmp_path / "e.json") == texts


def test_sentences():
    found = sentences('One is\n so. "Two!" he  said?  He did (3.5 of them.) Four e.g. five')
    assert found == ["One is so.", '"Two!" he said?', "He did (3.5 of them.)", "Four e.g. five"]


def test_questions_name_their_documents(data_folder):
    questions, passages = read_squad(data_folder / "squad.json")
    assert len(questions) == 168 and len(passages) == 84  # without the impossible ones
    one = questions[0]
    assert one.answers == ("Answer0x0",) and one.gold == (passages[0].text,) and len(one.near) == 5
    assert [passages[0].text[start:][: len(text)] for text, start in passages[0].answers] == ["Answer0x0"] * 2
    hot = read_hotpotqa(data_folder / "hotpotqa.json")[1]
    assert [title_of(d) for d in hot.gold] == ["Title 9", "Title 10"] and len(hot.near) == 8
    assert "The river was called Flow9." in hot.gold[0]


def test_parts_share_nothing(sources):
    dev, test = (sources.material[split] for split in SPLITS)
    for one, other in ((dev.hotpotqa_documents, test.hotpotqa_documents), (dev.squad_documents, test.squad_documents)):
        assert one and other and not held(one) & held(other)
    assert not {t for q in dev.hotpotqa for t in titles(q)} & {t for q in test.hotpotqa for t in titles(q)}
    assert {q.group for q in dev.squad}.isdisjoint(q.group for q in test.squad)
    assert set(dev.sentences).isdisjoint(test.sentences)
    in_rows = [*dev.hotpotqa_documents, *test.hotpotqa_documents, *dev.squad_documents, *test.squad_documents]
    assert sources.paragraphs["train"] and not held(sources.paragraphs["train"]) & held(in_rows)
    essays = sources.essays
    assert not held(essays["train"]) & held([*essays["dev"], *essays["test"]])
    assert not held(essays["dev"]) & held(essays["test"])
    sizes = {part: sum(map(len, texts)) for part, texts in essays.items()}
    assert sizes["test"] > sizes["train"] > sizes["dev"] > 0
    assert {split: len(sources.material[split].hotpotqa) for split in SPLITS} == QUESTIONS


def test_texts_that_share_a_run_are_related():
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(words[:20]), "other words", " ".join(words[5:30]), " ".join(words[16:40])]
    assert related(texts) == [[0, 2, 3], [1]]  # the last is related over the third
    assert unshared(texts, [texts[3]]) == [texts[0], "other words"]


def test_texts_are_written_apart(sources, tmp_path):
    write_texts(sources, tmp_path)
    files = text_files(tmp_path)
    assert sorted(p.name for p in (tmp_path / "text").iterdir()) == sorted(f.name for f in files)
    train = files[0].read_text(encoding="utf-8")
    assert all(p in train for p in sources.paragraphs["train"]) and all(e in train for e in sources.essays["train"])
    rest = [f.read_text(encoding="utf-8") for f in files[1:]]
    assert all(rest) and not held([train]) & held(rest)
    assert spread(list("abcd"), list("xy")) == list("axbcyd")
