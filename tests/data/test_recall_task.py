import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.data.conftest import PROSE, chinese
from tptt.assets import BASE
from tptt.data import FORMATS, IGNORE, Lexicon, RecallTask, tokenize

LENGTH = 400


@pytest.fixture(scope="session")
def base_tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="session")
def base_drills(base_tokenizer, lexicon):
    return RecallTask(base_tokenizer, lexicon, tokenize(base_tokenizer, [PROSE]))


def draw(drills, batch=3, length=LENGTH, seed=0, facts=None):
    return drills.draw(batch, length, torch.Generator().manual_seed(seed), facts)


def check(drawn):
    """What holds for any drawn rows; returns the asked answers as (row, place, tokens, distance)."""
    ids, answers, distance, number = drawn.input_ids, drawn.answers, drawn.distance, drawn.number
    assert ids.shape == answers.shape == distance.shape == number.shape
    assert ids.dtype == answers.dtype == distance.dtype == number.dtype == torch.long
    asked = answers != IGNORE
    assert torch.equal(answers[asked], ids[asked])
    assert torch.equal(asked, number >= 0) and torch.equal(asked, distance > 0)
    found = []
    for row in range(len(ids)):
        for fact in number[row][asked[row]].unique().tolist():
            places = (number[row] == fact).nonzero()[:, 0]
            start, size = int(places[0]), len(places)
            assert torch.equal(places, torch.arange(start, start + size)), "an answer in pieces"
            (back,) = distance[row, places].unique().tolist()
            assert size <= back <= start, "asked before it was stated to its end"
            stated = ids[row, start - back : start - back + size]
            assert torch.equal(stated, ids[row, places]), "the answer was not stated where the distance says"
            found.append((row, start, tuple(stated.tolist()), back))
    return found


@pytest.mark.parametrize("name", [*FORMATS, "all"])
def test_every_answer_was_stated_where_the_distance_says(name, tokenizer, lexicon):
    drills = RecallTask(tokenizer, lexicon, tokenize(tokenizer, [PROSE]), name, facts=4)
    found = check(draw(drills, batch=4))
    assert len(found) == 4 * 4
    if name == "passages":
        assert max(len(tokens) for *_, tokens, _ in found) > 2


@pytest.mark.parametrize("name", FORMATS)
def test_the_text_before_both_places_is_that_of_a_fact(name, tokenizer, lexicon, monkeypatch):
    """Rows are made of the facts of the format, not of something that only looks consistent."""
    made, inner = [], FORMATS[name]
    monkeypatch.setitem(FORMATS, name, lambda *args: made.append(inner(*args)) or made[-1])
    drawn = draw(RecallTask(tokenizer, lexicon, tokenize(tokenizer, [PROSE]), name, facts=3))
    texts = {
        (tokenizer.decode(encode(f.question)), tokenizer.decode(encode(f.question + f.answer)))
        for f in made
        for encode in [lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]]
    }
    for row, start, tokens, _ in check(drawn):
        ids = drawn.input_ids[row].tolist()
        end = tokenizer.decode(ids[:start]), tokenizer.decode(ids[: start + len(tokens)])
        assert any(end[0].endswith(question) and end[1].endswith(whole) for question, whole in texts)


def test_questions_of_a_row_cannot_be_taken_for_each_other(base_tokenizer):
    """A few words only, so that facts collide often: a question stands for one answer in its row."""
    words = [f"{a}{b}t" for a in "bcdfghjk" for b in "aeiouxyz"]
    few = Lexicon(tuple(words), " ".join(words))
    drills = RecallTask(base_tokenizer, few, tokenize(base_tokenizer, [PROSE]), facts=24)
    for seed in range(12):
        drawn = draw(drills, batch=2, length=900, seed=seed)
        for row, start, tokens, _ in check(drawn):
            ids = drawn.input_ids[row].tolist()
            line = max(i for i in range(start) if "\n" in base_tokenizer.decode([ids[i]]))
            question = ids[line:start]
            size = len(question)
            at = [i + size for i in range(start) if ids[i : i + size] == question]
            assert {tuple(ids[i : i + len(tokens)]) for i in at} <= {tokens}, base_tokenizer.decode(question)


def test_the_generator_alone_decides(base_drills):
    random.seed(1)
    first, before = draw(base_drills, seed=4), torch.get_rng_state()
    random.seed(2)
    again, other = draw(base_drills, seed=4), draw(base_drills, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    assert not torch.equal(first.input_ids, other.input_ids)
    assert torch.equal(before, torch.get_rng_state())


def test_drawing_one_by_one_advances_the_generator(base_drills):
    generator = torch.Generator().manual_seed(0)
    first, second = (base_drills.draw(1, LENGTH, generator).input_ids for _ in range(2))
    assert not torch.equal(first, second)


def test_text_without_spaces_and_bytes_for_characters(base_tokenizer):
    text = chinese()
    drills = RecallTask(base_tokenizer, Lexicon.of([text]), tokenize(base_tokenizer, [text]), facts=3)
    found = check(draw(drills, batch=20))
    assert len(found) > 40
    assert max(len(tokens) for *_, tokens, _ in found) > 8, "a character is three bytes here"


def test_the_room_between_facts_is_running_text(base_tokenizer, lexicon):
    filler = torch.arange(100, 1500)
    drawn = draw(RecallTask(base_tokenizer, lexicon, filler, "records", facts=2))
    steps = (drawn.input_ids[:, 1:] - drawn.input_ids[:, :-1] == 1).float().mean()
    assert steps > 0.85


def test_a_short_row_takes_the_formats_that_fit(base_tokenizer, lexicon):
    filler = tokenize(base_tokenizer, [PROSE])
    assert len(check(draw(RecallTask(base_tokenizer, lexicon, filler, facts=4), batch=30, length=20))) >= 30
    with pytest.raises(ValueError, match="no fact of passages fits into a recall row of 16 tokens"):
        draw(RecallTask(base_tokenizer, lexicon, filler, "passages"), length=16)
    with pytest.raises(ValueError, match="no fact of records, .* fits into a recall row of 4 tokens"):
        draw(RecallTask(base_tokenizer, lexicon, filler), length=4)


def test_errors(base_tokenizer, base_drills, lexicon):
    with pytest.raises(ValueError, match="one fact or more, not 0"):
        draw(base_drills, facts=0)
    with pytest.raises(ValueError, match="longer filler than"):
        draw(base_drills, length=10**6)
    with pytest.raises(ValueError, match="unknown recall format riddles"):
        RecallTask(base_tokenizer, lexicon, base_drills.filler, ("riddles",))


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(40, 500), facts=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_rows_of_any_shape(base_drills, batch, length, facts, seed):
    drawn = draw(base_drills, batch, length, seed, facts)
    assert drawn.input_ids.shape == (batch, length)
    per_row = torch.tensor([row for row, *_ in check(drawn)]).bincount(minlength=batch)
    assert (per_row >= 1).all() and (per_row <= facts).all()
