"""Losses by token and perplexity by place in the row."""

import math

import pytest
import torch

from tptt.evaluation import perplexity, perplexity_by_position
from tptt.evaluation.perplexity import evaluating, in_eval_mode, token_losses

VOCABULARY = 64


class Sure(torch.nn.Module):
    """Gives the token at place t of every row the probability ``chances[t]``, the others share the rest."""

    device = torch.device("cpu")

    def __init__(self, chances) -> None:
        super().__init__()
        self.chances = chances

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        for t, chance in enumerate(self.chances[1:]):
            logits[:, t] = math.log((1 - chance) / (VOCABULARY - 1))
            logits[:, t].scatter_(1, input_ids[:, t + 1, None], math.log(chance))
        return type("Output", (), {"logits": logits})


def test_each_span_holds_the_tokens_from_one_bound_to_the_next():
    chances = [0.0, 0.5, 0.25, 0.2, 0.1, 0.9, 0.3, 0.7]  # nothing predicts the first
    found = perplexity_by_position(Sure(chances), torch.randint(VOCABULARY, (3, 8)), [2, 5, 7])
    mean = {2: 1 / 0.5, 5: (0.25 * 0.2 * 0.1) ** (-1 / 3), 7: (0.9 * 0.3) ** (-1 / 2)}
    assert found == pytest.approx(mean, rel=1e-5) and list(found) == [2, 5, 7]


def test_losses_are_the_models_own_row_by_row(llama):
    rows = torch.randint(VOCABULARY, (5, 16))
    losses = token_losses(llama, rows, tokens_per_batch=32)
    with torch.no_grad():
        own = [llama(input_ids=row[None], labels=row[None]).loss.item() for row in rows]
    assert losses.shape == (5, 15)
    assert losses.mean(1).tolist() == pytest.approx(own, rel=1e-5)


def test_spans_together_are_the_perplexity(llama):
    rows = torch.randint(VOCABULARY, (4, 16))
    found = perplexity_by_position(llama, rows, [4, 10, 16], tokens_per_batch=16)
    nats = math.log(found[4]) * 3 + math.log(found[10]) * 6 + math.log(found[16]) * 6
    assert math.exp(nats / 15) == pytest.approx(perplexity(llama, rows), rel=1e-6)
    assert perplexity_by_position(llama, rows, [16])[16] == pytest.approx(perplexity(llama, rows), rel=1e-6)
    assert len({round(value, 3) for value in found.values()}) == 3


@pytest.mark.parametrize("bounds", [[], [4, 4], [8, 4], [1, 4], [0], [4, 17]])
def test_bounds_must_rise_within_the_rows(llama, bounds):
    with pytest.raises(ValueError, match="from 2 or more to 16 at most") as error:
        perplexity_by_position(llama, torch.randint(VOCABULARY, (2, 16)), bounds)
    assert str(bounds) in str(error.value)


class Certain(torch.nn.Module):
    """Gives every token but one the whole probability: the right one has a loss of ``nats``."""

    device = torch.device("cpu")

    def __init__(self, nats: float) -> None:
        super().__init__()
        self.nats = nats

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        logits[..., 0] = self.nats
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize(("nats", "expected"), [(700.0, math.exp(700.0)), (710.0, math.inf), (1e30, math.inf)])
def test_a_loss_beyond_the_largest_number_is_infinite(nats, expected):
    """exp(709.78) is the largest float64; a model that diverges goes beyond it."""
    rows = torch.full((2, 8), 1)
    assert perplexity(Certain(nats), rows) == pytest.approx(expected, rel=1e-4)
    assert perplexity_by_position(Certain(nats), rows, [4, 8]) == pytest.approx({4: expected, 8: expected}, rel=1e-4)


def test_not_a_number_stays_so():
    rows = torch.full((2, 8), 1)
    assert math.isnan(perplexity(Certain(math.nan), rows))
    assert all(math.isnan(x) for x in perplexity_by_position(Certain(math.nan), rows, [4, 8]).values())


@pytest.mark.parametrize("context", [evaluating, in_eval_mode])
def test_each_submodule_comes_back_to_its_own_mode(llama, context):
    llama.train()
    frozen = llama.model.layers[0]
    frozen.eval()
    before = {name: module.training for name, module in llama.named_modules()}
    with pytest.raises(RuntimeError, match="on purpose"), context(llama):
        assert not any(module.training for module in llama.modules())
        raise RuntimeError("on purpose")
    assert {name: module.training for name, module in llama.named_modules()} == before
    assert llama.training and not frozen.self_attn.training


def test_what_is_computed_in_eval_mode_alone_may_take_part_in_training(llama):
    with in_eval_mode(llama):
        llama(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    assert llama.lm_head.weight.grad is not None
