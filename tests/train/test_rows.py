import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tptt.train import MixedRows


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_both_kinds_and_their_weights(rows):
    found = rows(answer_weight=7.0, filler_weight=0.25)
    for i in range(len(found)):
        item = found[i]
        names = "input_ids", "labels", "loss_weights", "stated"
        assert {k: v.shape for k, v in item.items()} == dict.fromkeys(names, (32,))
        assert torch.equal(item["input_ids"], item["labels"])
        assert set(item["stated"].tolist()) == ({-1, 0, 1} if found.is_recall(i) else {-1})
        assert set(item["loss_weights"].tolist()) == ({0.25, 7.0} if found.is_recall(i) else {1.0})
    assert sum(found.is_recall(i) for i in range(16)) == 8


def test_the_weighted_tokens_are_the_asked_values(rows):
    found = rows()
    for i in filter(found.is_recall, range(16)):
        item = found[i]
        ids, places = item["input_ids"], (item["loss_weights"] == 5).nonzero()[:, 0].tolist()
        assert len(places) in (2, 4)
        for t in places:
            assert ids[t - 2] == 5 and [5, int(ids[t - 1]), int(ids[t])] in ids[: t - 2].unfold(0, 3, 1).tolist()
        told = (item["stated"] == 1).nonzero()[:, 0]
        assert (item["stated"] == -1).nonzero()[:, 0].tolist() == places
        assert sorted(ids[told].tolist()) == sorted(ids[places].tolist()) and (ids[told - 2] == 5).all()
        assert told.max() < max(places) and not set(told.tolist()) & set(places)


def test_a_row_depends_on_the_seed_and_its_number_alone(rows):
    found, longer, other = rows(), rows(count=64), rows(seed=1)
    torch.manual_seed(7)
    for i in (3, 15, 0, 3):
        assert same(found[i], rows()[i]) and same(found[i], longer[i])
        assert not same(found[i], other[i])
    assert not same(found[0], found[2])


def test_facts_are_drawn_from_all_numbers(rows):
    found = rows(count=40, facts=(1, 2, 4))
    counts = {int((found[i]["loss_weights"] == 5).sum()) for i in filter(found.is_recall, range(40))}
    assert counts == {1, 2, 4}


def test_text_is_cut_at_random_places():
    stream = torch.arange(1000)
    found = MixedRows(stream, None, 20, 50)
    starts = [int(found[i]["input_ids"][0]) for i in range(50)]
    assert all(torch.equal(found[i]["input_ids"], torch.arange(s, s + 20)) for i, s in enumerate(starts))
    assert len(set(starts)) > 40 and max(starts) > 800 and min(starts) < 200
    assert not any(found.is_recall(i) for i in range(50)), "there is nothing that draws recall rows"


@given(share=st.floats(0, 1), count=st.integers(1, 200))
def test_recall_rows_lie_evenly_among_the_others(share, count):
    found = MixedRows(torch.arange(30), object(), 8, count, recall_share=share)
    kinds = torch.tensor([found.is_recall(i) for i in range(count)])
    parts = kinds.cumsum(0) - share * torch.arange(1, count + 1)
    assert parts.abs().max() < 1.001


def test_iteration_ends_and_loads(rows):
    found = rows()
    with pytest.raises(IndexError):
        found[16]
    with pytest.raises(IndexError):
        found[-1]
    batches = list(DataLoader(found, batch_size=4))
    assert [b["input_ids"].shape for b in batches] == [(4, 32)] * 4


def test_a_text_as_short_as_a_row_is_refused():
    with pytest.raises(ValueError, match="the text has 32 tokens, rows of 32 need a longer one"):
        MixedRows(torch.zeros(32, dtype=torch.long), None, 32, 1)
