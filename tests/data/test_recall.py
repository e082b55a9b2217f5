import pytest
import torch
from transformers import AutoTokenizer

from tptt.assets import BASE
from tptt.data import IGNORE, RecallRows, RecallVocabulary


@pytest.fixture(scope="module")
def vocabulary():
    return RecallVocabulary(AutoTokenizer.from_pretrained(BASE))


@pytest.fixture
def rows(vocabulary):
    return RecallRows(vocabulary, torch.arange(3, 1500).repeat(4), facts=12)


def draw(rows, form, seed=0, length=300, facts=12):
    method = rows.draw if form == "spread" else rows.draw_dense
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
