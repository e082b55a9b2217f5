"""What is trained on and what is measured: two parts of a text that share no word here."""

import re
from string import Formatter

import pytest
import torch

from tests.data.files import jsonl, write
from tptt import TpttConfig
from tptt.assets import BASE
from tptt.data import FORMATS, TextSplit, formats
from tptt.train import Corpus, TrainingSettings
from tptt.train.loop import load_tokenizer

LENGTH = 200
VOWELS = "aeiou"
WORDS = {
    side: [f"{side}{a}{b}{c}{d}" for a in VOWELS for b in letters for c in VOWELS for d in letters]
    for side, letters in (("x", "bcdfg"), ("y", "klmnp"))
}
"""Words of the part to train on begin with x and those of the held-out part with y."""


def some_text(side, seed, number):
    order = torch.randint(len(WORDS[side]), (number,), generator=torch.Generator().manual_seed(seed)).tolist()
    return "\n".join(" ".join(WORDS[side][w] for w in order[i : i + 9]) for i in range(0, number, 9))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TpttConfig(base_model_name=str(BASE)))


@pytest.fixture(scope="module")
def split():
    return TextSplit([some_text("x", i, 900) for i in range(20)], [some_text("y", 99 + i, 900) for i in range(8)])


@pytest.fixture(scope="module")
def corpus(tokenizer, split):
    return Corpus.of(tokenizer, split, tokens=3000, longest=LENGTH)


def of_side(side, text):
    """The words of one side in ``text``, also where they are parts of an identifier or names."""
    return re.findall(rf"(?<![a-z]){side}[aeiou][a-z][aeiou][a-z]", re.sub(r"([A-Z])", r" \1", text).lower())


def shown(corpus, rows):
    return [corpus.tokenizer.decode(row) for row in rows]


def test_the_parts_share_no_word(corpus):
    for side, other, lexicon, stream in (
        ("x", "y", corpus.lexicon, corpus.stream),
        ("y", "x", corpus.held_lexicon, corpus.held_out),
    ):
        assert set(lexicon.words) <= set(WORDS[side])
        for text in (corpus.tokenizer.decode(stream), lexicon.text):
            assert len(of_side(side, text)) > 1000 and not of_side(other, text)


@pytest.mark.parametrize("name", [*FORMATS, "all"])
@pytest.mark.parametrize("facts", [1, 6])
def test_measured_recall_rows_hold_no_word_of_the_training_part(corpus, name, facts):
    """Neither in their facts (words and passages) nor in the filler between them."""
    drawn = corpus.recall(name, facts).draw(8, LENGTH, torch.Generator().manual_seed(facts))
    for text in shown(corpus, drawn.input_ids):
        assert len(of_side("y", text)) > 1 and not of_side("x", text)


@pytest.mark.parametrize("name", [*FORMATS, "all"])
def test_recall_rows_to_train_on_hold_no_word_of_the_held_out_part(corpus, name):
    drawn = corpus.taught(name).draw(8, LENGTH, torch.Generator().manual_seed(0), 4)
    for text in shown(corpus, drawn.input_ids):
        assert len(of_side("x", text)) > 1 and not of_side("y", text)


@pytest.mark.parametrize("length", [10, LENGTH])
def test_measured_text_is_held_out(corpus, length):
    rows = corpus.text(length, 2000)
    assert rows.shape == (2000 // length, length) and rows.dtype == torch.long
    assert torch.equal(rows.flatten(), corpus.held_out[:2000])
    text = " ".join(shown(corpus, rows))
    assert len(of_side("y", text)) > 300 and not of_side("x", text)


@pytest.mark.parametrize("recall_share", [0.0, 0.5, 1.0])
def test_training_rows_hold_no_word_of_the_held_out_part(corpus, recall_share):
    rows = corpus.rows(TrainingSettings(recall_share=recall_share), LENGTH, 20)
    assert sum(rows.is_recall(i) for i in range(20)) == 20 * recall_share
    ids = [rows[i]["input_ids"] for i in range(20)]
    assert {row.dtype for row in ids} == {torch.long}
    for text in shown(corpus, ids):
        assert len(of_side("x", text)) > 1 and not of_side("y", text)


def test_the_formats_own_words_are_of_neither_part():
    """Else a row could hold a word of the other part by its format."""
    own = " ".join(part[0] for sentence in formats._SENTENCES for text in sentence for part in Formatter().parse(text))
    assert not of_side("x", own) and not of_side("y", own)


def test_measured_rows_are_the_same_ones_for_every_seed_of_the_order(tokenizer, split, corpus):
    other = Corpus.of(tokenizer, split, tokens=3000, longest=LENGTH, seed=7)
    assert torch.equal(other.held_out, corpus.held_out) and other.held_lexicon == corpus.held_lexicon
    assert not torch.equal(other.stream, corpus.stream)


def test_as_much_is_read_as_the_run_needs(tokenizer, split):
    found = Corpus.of(tokenizer, split, tokens=700, longest=32)
    assert len(found.stream) == 1400 and found.stream.dtype == torch.int32
    assert len(Corpus.of(tokenizer, split, tokens=8, longest=50).stream) == 400
    assert "".join(found.lexicon.text.split()) == "".join(Corpus.of(tokenizer, split, 9000, 32).lexicon.text.split())


def test_a_held_out_part_without_words_of_its_own_is_refused(tokenizer, split):
    """The words of the training part would stand in for them."""
    short = TextSplit(split.train, [" ".join(WORDS["y"][:20] * 60)])
    message = "held-out part is too short: recall facts need a text of 64 different words or more; this one has 20"
    with pytest.raises(ValueError, match=message):
        Corpus.of(tokenizer, short, 3000, LENGTH)


@pytest.mark.parametrize("part", ["training", "held-out"])
def test_a_part_shorter_than_a_row_is_refused(tokenizer, split, part):
    parts = (["some words"], split.held_out) if part == "training" else (split.train, ["some words"])
    with pytest.raises(ValueError, match=f"the text's {part} part has . tokens, rows of {LENGTH} need a longer one"):
        Corpus.of(tokenizer, TextSplit(*parts), 3000, LENGTH)


def test_a_file_s_column_is_read(tokenizer, split, tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([*split.train, *split.held_out], "words"))
    found = Corpus.of(tokenizer, str(path), 3000, LENGTH, column="words")
    assert len(found.stream) == 6000 and len(found.held_out) > 1000
    with pytest.raises(ValueError, match="has no split 'test'; it has train"):
        Corpus.of(tokenizer, str(path), 3000, LENGTH, column="words", split="test")
    with pytest.raises(ValueError, match="has no configuration 'raw'"):
        Corpus.of(tokenizer, str(path), 3000, LENGTH, column="words", config_name="raw")
