"""KL(base || model) by hand: two tokens of vocabulary, so that every number can be checked with a pocket calculator."""

import math

import pytest
import torch

from tptt.evaluation.kl import kl_from_base

BASE, MODEL = (0.5, 0.5), (0.9, 0.1)
# .5 ln(.5 / .9) + .5 ln(.5 / .1), and the other way round .9 ln(.9 / .5) + .1 ln(.1 / .5)
FORWARD, REVERSED = 0.510826, 0.368064


def logits(*rows):
    """[B, T, 2] of the probabilities of each token, with an offset that a softmax does not see."""
    return torch.tensor(rows).log() + 3.0


def test_the_direction_is_from_the_base_to_the_model():
    ours, theirs = logits([MODEL, MODEL]), logits([BASE, BASE])
    assert kl_from_base(ours, theirs).item() == pytest.approx(FORWARD, abs=1e-6)
    assert kl_from_base(theirs, ours).item() == pytest.approx(REVERSED, abs=1e-6)


def test_equal_predictions_have_no_divergence():
    assert kl_from_base(logits([MODEL, BASE]), logits([MODEL, BASE])).item() == pytest.approx(0, abs=1e-7)


def test_it_is_the_sum_over_all_tokens_but_the_last_of_each_row():
    ours = logits([MODEL, BASE, MODEL, MODEL], [BASE, BASE, MODEL, BASE])
    theirs = logits([BASE] * 4, [BASE] * 4)
    assert kl_from_base(ours, theirs).item() == pytest.approx(3 * FORWARD, abs=1e-5)


def test_a_weight_belongs_to_the_token_that_is_predicted():
    """What place t predicts is token t + 1: the first weight counts for nothing, the last place predicts nothing."""
    ours, theirs = logits([MODEL, MODEL, MODEL]), logits([BASE, BASE, BASE])
    for weights, expected in (
        ([1.0, 0.0, 0.0], 0.0),
        ([0.0, 2.0, 0.0], 2.0),
        ([0.0, 0.0, 0.5], 0.5),
        ([7.0, 0.25, 3.0], 3.25),
    ):
        found = kl_from_base(ours, theirs, torch.tensor([weights])).item()
        assert found == pytest.approx(expected * FORWARD, abs=1e-5), weights


def test_rows_longer_than_what_is_computed_at_once():
    tokens = 5001
    ours, theirs = logits([MODEL] * tokens), logits([BASE] * tokens)
    assert kl_from_base(ours, theirs).item() == pytest.approx((tokens - 1) * FORWARD, rel=1e-5)


def test_half_precision_is_compared_in_float32():
    ours, theirs = (x.bfloat16().float() for x in (logits([MODEL, MODEL]), logits([BASE, BASE])))
    want = kl_from_base(ours, theirs)
    found = kl_from_base(ours.bfloat16(), theirs.bfloat16())
    assert found.dtype == torch.float32 and found.item() == pytest.approx(want.item(), rel=1e-6)


def test_its_gradient_is_that_of_the_model_alone():
    """d/dz KL(p || softmax(z)) = softmax(z) - p."""
    ours, theirs = logits([MODEL, MODEL]).requires_grad_(), logits([BASE, BASE]).requires_grad_()
    kl_from_base(ours, theirs).backward()
    want = [m - b for m, b in zip(MODEL, BASE, strict=True)]
    assert ours.grad[0, 0].tolist() == pytest.approx(want, abs=1e-6)
    assert ours.grad[0, 1].tolist() == [0, 0] and math.isclose(sum(want), 0, abs_tol=1e-9)
