"""Shares carry how many answers they rest on."""

import math

import pytest
import torch

from benchmarks import answers
from benchmarks.answers import Mean, Share, draws_of, generated_until, recall_until
from benchmarks.held_out import PARTS, parts_of, split_tokens, windows
from tptt.assets import BASE
from tptt.evaluation import RecallScore
from tptt.hf.configuration import TpttConfig
from tptt.train import Corpus
from tptt.train.base import load_tokenizer


def test_standard_errors_by_hand():
    """9 of 10, 8 of 20 and 10 of 10: variances .09 / 10, .24 / 20 and 0."""
    found = Mean.of_formats([Share.of(9, 10), Share.of(8, 20), Share.of(10, 10)])
    assert found.share == pytest.approx((0.9 + 0.4 + 1.0) / 3) and found.asked == 40
    assert found.error == pytest.approx(math.sqrt(0.009 + 0.012) / 3)
    assert str(found) == "0.77 (n 40, se 0.048)"


def test_both_spreads_of_seeds_by_hand():
    means = [Mean(0.7, 100, 0.03), Mean(0.9, 200, 0.04)]
    found = Mean.of_seeds(means)
    assert found.share == pytest.approx(0.8) and found.asked == 300
    assert found.error == pytest.approx(0.05 / 2) and found.spread == pytest.approx(math.sqrt(0.02))
    assert str(found) == "0.80 ± 0.14 (n 300, se 0.025)"
    shared = Mean.of_seeds(means, shared=True)  # more models that answer the same questions are no more questions
    assert shared.asked == 200 and shared.error == pytest.approx(0.035)


def test_a_number_that_was_not_recorded_stays_unknown():
    unknown = Mean.of_formats([Share.of(9, 10), Share(0.5, None)])
    assert unknown.asked is None and unknown.error is None
    assert str(Mean.of_seeds([unknown, unknown])) == "0.70 ± 0.00 (n not recorded)"
    assert Share.read(Share.of(3, 4).written) == Share(0.75, 4)
    assert Share.of(0, 0).share is None


def test_no_two_seeds_share_rows():
    drawn = [set(draws_of(seed)) for seed in range(4)]
    assert all(len(x) >= 500 for x in drawn) and len(set.union(*drawn)) == sum(map(len, drawn))


def test_rows_are_drawn_until_there_are_enough_answers(monkeypatch):
    seeds = []

    def score(model, recall, length, window, rows, seed):
        seeds.append(seed)
        return RecallScore(length, window, 0.5, 0.75, 2, 4, {64: (1, 2), 128: (3, 4)})

    monkeypatch.setattr(answers, "recall_accuracy", score)
    found = recall_until(None, None, 128, 64, seed=2, least=9)
    assert found.beyond == Share.of(9, 12) and found.inside == Share.of(3, 6)
    assert found.by_distance == {64: [3, 6], 128: [9, 12]}
    assert seeds == list(draws_of(2))[:3]
    monkeypatch.setattr(answers, "recall_by_generation", lambda *args: (1, 2))
    assert generated_until(None, None, 128, 64, seed=0, least=5) == Share.of(3, 6)


def test_rows_that_ask_nothing_are_an_error(monkeypatch):
    monkeypatch.setattr(answers, "recall_by_generation", lambda *args: (0, 0))
    with pytest.raises(RuntimeError, match="asked 0 answers beyond the window, not 5"):
        generated_until(None, None, 128, 64, seed=0, least=5)


def test_parts_share_no_window_of_a_text_that_repeats_itself():
    generator = torch.Generator().manual_seed(0)
    once = torch.randint(1000, (2000,), generator=generator)
    ids = torch.cat([once, torch.randint(1000, (1500,), generator=generator), once[300:700], once[1000:1010]])
    first, second = split_tokens(ids, 16)
    assert windows(ids[: len(ids) // 2], 16) & windows(ids[len(ids) // 2 :], 16)  # or this would show nothing
    assert not windows(first, 16) & windows(second, 16)
    assert len(first) == len(ids) // 2 and len(second) == len(ids) - len(first) - 400
    assert torch.equal(second[-10:], once[1000:1010])  # a shorter piece stays


@pytest.fixture(scope="module")
def corpus():
    return Corpus.of(load_tokenizer(TpttConfig(base_model_name=str(BASE))), None, 20_000, 1024)


def test_parts_of_the_text_that_the_benchmarks_measure_on(corpus):
    parts = parts_of(corpus)
    assert tuple(parts) == PARTS
    development, test = (windows(x.held_out) for x in parts.values())
    assert len(development) > 50_000 and len(test) > 50_000 and not development & test
    again = parts_of(corpus)
    for name, part in parts.items():
        assert torch.equal(part.held_out, again[name].held_out) and part.stream is corpus.stream
        ids = part.recall("passages").draw(2, 512, torch.Generator().manual_seed(0)).input_ids
        assert part.held_lexicon.text in part.tokenizer.decode(part.held_out) and len(ids) == 2
