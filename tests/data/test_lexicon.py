import random
import re

import pytest

from tests.data.conftest import PROSE, chinese
from tptt.data import Lexicon

MANY = " ".join(f"{a}{b}ord" for a in "bcdfghjk" for b in "aeiouyxz")


def test_words_are_the_most_frequent_ones_in_lower_case(lexicon):
    assert lexicon.words[0] == "the"
    counts = [len(re.findall(rf"(?i)\b{word}\b", PROSE.replace("_", " "))) for word in lexicon.words[:20]]
    assert counts[0] == max(counts) and counts[-1] > 20
    assert len(set(lexicon.words)) == len(lexicon.words)


def test_words_are_whole_words_of_3_to_12_letters():
    words = Lexicon.of([MANY + " internationalisation ab x1y2z3 word_in_parts"]).words
    assert {"word", "parts"} <= set(words)
    assert not [w for w in words if not 3 <= len(w) <= 12 or not w.isalpha()]
    assert "internationa" not in words and "lisation" not in words


def test_runs_of_letters_without_spaces_give_short_words():
    words = Lexicon.of([chinese()]).words
    assert len(words) > 64
    assert {len(w) for w in words} == {3}


def test_too_few_words_are_counted_in_the_error():
    with pytest.raises(ValueError, match="64 different words or more; this one has 2"):
        Lexicon.of(["one two", "two one"])
    with pytest.raises(ValueError, match="this one has 0"):
        Lexicon.of([])


def test_two_million_characters_are_read():
    documents = iter([MANY * 2000] * 10)
    assert len(Lexicon.of(documents).text) == 2_000_000
    assert next(documents, None) is not None, "more than needed was read"


@pytest.mark.parametrize("text", [PROSE, MANY, chinese()], ids=["prose", "short", "chinese"])
def test_passages_are_consecutive_pieces_of_the_text(text):
    lexicon, rng = Lexicon.of([text]), random.Random(0)
    for _ in range(50):
        first, then = lexicon.passage(rng, 28, 24)
        assert first + then in lexicon.text
        assert 28 <= len(first) <= 28 + 24 and 24 <= len(then) <= 24 + 24
        assert not first[0].isspace()


def test_the_generator_alone_decides(lexicon):
    def drawn(seed):
        rng = random.Random(seed)
        return [lexicon.word(rng), lexicon.name(rng), lexicon.identifier(rng), *lexicon.passage(rng, 9, 9)]

    random.seed(1)
    first = drawn(5)
    random.seed(2)
    assert drawn(5) == first != drawn(6)


def test_names_and_identifiers_are_made_of_words(lexicon):
    rng = random.Random(0)
    for _ in range(50):
        assert lexicon.name(rng).lower() in lexicon.words
        parts = re.findall(r"[a-z]+|[A-Z][a-z]+", lexicon.identifier(rng))
        assert len(parts) in (2, 3) and all(p.lower() in lexicon.words for p in parts)
