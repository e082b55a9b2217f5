import random

import pytest

from tptt.data import FORMATS, chosen_formats


@pytest.mark.parametrize("name", FORMATS)
def test_a_fact_is_stated_and_asked(name, lexicon):
    for seed in range(60):
        fact = FORMATS[name](lexicon, random.Random(seed))
        assert fact == FORMATS[name](lexicon, random.Random(seed))
        assert fact.cue.startswith("\n") and fact.question.startswith("\n")
        assert len(fact.cue) > 3 and fact.answer.strip()
        assert fact.answer.strip() not in fact.question.split(), "the question tells the answer"
        if name == "passages":
            assert fact.question == "\n> " + fact.cue[1:]
        else:
            assert fact.question.endswith(fact.cue[1:]), "the question does not take the statement up"


@pytest.mark.parametrize("name", FORMATS)
def test_facts_differ(name, lexicon):
    facts = [FORMATS[name](lexicon, random.Random(seed)) for seed in range(60)]
    assert len({f.cue for f in facts}) > 50 and len({f.answer for f in facts}) > 45


def test_some_sentences_are_asked_by_a_question(lexicon):
    facts = [FORMATS["sentences"](lexicon, random.Random(seed)) for seed in range(200)]
    share = sum("?" in f.question for f in facts) / 200
    assert 0.25 < share < 0.55
    assert all(f.question == f.cue or "?" in f.question for f in facts)


def test_choosing():
    assert chosen_formats() == chosen_formats("all") == tuple(FORMATS)
    assert chosen_formats("passkey") == chosen_formats(["passkey"]) == ("passkey",)
    assert chosen_formats("all", without=("passkey",)) == tuple(n for n in FORMATS if n != "passkey")


@pytest.mark.parametrize(
    ("names", "without", "message"),
    [
        ("riddles", (), "unknown recall format riddles; valid are records, passkey"),
        (("records", "x"), (), "unknown recall format x;"),
        ("all", ("y",), "unknown recall format y;"),
        ("records", ("records",), "no recall format is left"),
        ((), (), "no recall format is left"),
    ],
)
def test_unknown_or_no_formats(names, without, message):
    with pytest.raises(ValueError, match=message):
        chosen_formats(names, without)
