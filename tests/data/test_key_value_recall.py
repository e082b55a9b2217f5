import itertools

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tptt.assets import BASE
from tptt.data import IGNORE, KeyValueRecall, RecallVocabulary


@pytest.fixture(scope="module")
def vocabulary():
    return RecallVocabulary(AutoTokenizer.from_pretrained(BASE))


@pytest.fixture
def rows(vocabulary):
    return KeyValueRecall(vocabulary, torch.arange(3, 1500).repeat(4), facts=12)


def draw(rows, form, seed=0, length=300, facts=12):
    method = rows.draw if form == "spread" else rows.draw_without_filler
    return method(3, length, torch.Generator().manual_seed(seed), facts)


@pytest.mark.parametrize("form", ["spread", "dense"])
def test_every_answer_was_stated_where_the_distance_says(rows, vocabulary, form):
    drawn = draw(rows, form)
    marker = torch.tensor(vocabulary.marker)
    size, asked = vocabulary.record_length, 0
    for row in range(3):
        for t in (drawn.answers[row] != IGNORE).nonzero()[:, 0].tolist():
            earlier = t - int(drawn.distance[row, t])
            assert 0 < earlier < t
            records = [drawn.input_ids[row, at - size + 1 : at + 1] for at in (earlier, t)]
            assert torch.equal(*records) and torch.equal(records[0][:-2], marker)
            assert records[0][-1] == drawn.answers[row, t]
            between = drawn.input_ids[row, earlier + 1 : t - size + 1]
            key = records[0][-2]
            repeated = [
                i
                for i in (between == key).nonzero()[:, 0].tolist()
                if between[max(0, i - len(marker)) : i].equal(marker)
            ]
            assert not repeated, "a later statement of the same fact lies between"
            asked += 1
    assert asked == 36 if form == "spread" else asked > 150
    assert not drawn.distance[drawn.answers == IGNORE].any()


@pytest.mark.parametrize("form", ["spread", "dense"])
def test_the_generator_alone_decides(rows, form):
    first, again, other = (draw(rows, form, seed) for seed in (1, 1, 2))
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)


def test_keys_and_values_share_no_word(vocabulary):
    assert not set(vocabulary.keys.tolist()) & set(vocabulary.values.tolist())
    assert len(vocabulary.keys) > 100


@pytest.mark.parametrize("form", ["spread", "dense"])
def test_a_key_stands_for_one_value_in_a_row(rows, vocabulary, form):
    marker, size = list(vocabulary.marker), vocabulary.record_length
    for row in draw(rows, form).input_ids.tolist():
        starts = [i for i in range(len(row) - size + 1) if row[i : i + len(marker)] == marker]
        records = [tuple(row[i + len(marker) : i + size]) for i in starts]
        values = dict(records)
        assert all(values[key] == value for key, value in records)
        assert set(values) <= set(vocabulary.keys.tolist()) and set(values.values()) <= set(vocabulary.values.tolist())
        assert len(values) == 12
        if form == "spread":  # stated once, asked once
            assert all(records.count(record) == 2 for record in records)


def test_every_repeated_record_of_a_dense_row_is_asked(rows, vocabulary):
    drawn, size = draw(rows, "dense", facts=3), vocabulary.record_length
    for row in range(3):
        latest: dict[int, int] = {}
        for at in range(size - 1, 300 // size * size, size):
            key = int(drawn.input_ids[row, at - 1])
            if key in latest:
                assert drawn.answers[row, at] == drawn.input_ids[row, at]
                assert drawn.distance[row, at] == at - latest[key]
            else:
                assert drawn.answers[row, at] == IGNORE
            latest[key] = at


def test_drawing_leaves_the_global_generator_alone(rows):
    before = torch.get_rng_state()
    draw(rows, "spread")
    draw(rows, "dense")
    assert torch.equal(before, torch.get_rng_state())


def test_a_row_too_short_for_all_facts_states_those_that_fit(rows, vocabulary):
    drawn = draw(rows, "spread", length=5 * vocabulary.record_length, facts=12)
    assert ((drawn.answers != IGNORE).sum(1) == 2).all()


def test_words_are_one_token_after_the_marker(vocabulary):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for key, value in zip(vocabulary.keys[:50].tolist(), vocabulary.values[:50].tolist(), strict=True):
        ids = [*vocabulary.marker, key, value]
        assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


def test_fewer_words_are_spread_over_the_whole_tokenizer(vocabulary):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    few = RecallVocabulary(tokenizer, most=len(vocabulary.words) * 2 // 3)
    assert len(few.words) == len(vocabulary.words) * 2 // 3 == len(few.words.unique())
    assert few.words[-1] >= vocabulary.words[-3]


def sentencepiece(words):
    """A tokenizer that, as Llama 2's, puts a space before every text, also before one that begins with a space."""
    pieces = {
        "<unk>": 0,
        "\n": 1,
        "@": 2,
        "\u2581": 3,
        "\u2581@": 4,
        **{f"\u2581{w}": 5 + i for i, w in enumerate(words)},
    }
    core = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    core.decoder = decoders.Replace("\u2581", " ")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_sentencepiece_words_are_found():
    words = ["".join(letters) for letters in itertools.product("abcdef", repeat=3)]
    assert len(RecallVocabulary(sentencepiece(words)).words) == len(words)
    with pytest.raises(ValueError, match="at least 64 words that are one token; this tokenizer has 10"):
        RecallVocabulary(sentencepiece(words[:10]))


def test_filler_is_kept_in_order(rows, vocabulary):
    drawn = draw(rows, "spread", facts=2, length=100)
    text = drawn.input_ids[0]
    steps = (text[1:] - text[:-1] == 1).float().mean()
    assert steps > 0.75


def test_errors(rows):
    with pytest.raises(ValueError, match="needs 8 tokens or more, not 7"):
        draw(rows, "spread", length=7)
    with pytest.raises(ValueError, match="longer filler"):
        draw(rows, "spread", length=99999)
    with pytest.raises(ValueError, match="one fact or more, not 0"):
        draw(rows, "spread", facts=0)
    with pytest.raises(ValueError, match="1 to .* not 99999"):
        draw(rows, "dense", facts=99999)
    with pytest.raises(ValueError, match="not 0"):
        draw(rows, "dense", facts=0)
    with pytest.raises(ValueError, match="needs 4 tokens or more, not 3"):
        draw(rows, "dense", length=3)
