"""Check 4 of INTEGRATION.md: packed rows equal separate rows."""

import pytest
import torch

from tptt.hf.packing import sequence_ids

from .models import assert_near, tokens

SETTINGS = [
    {},
    {"max_self_attn_length": 6, "operator": "gated_delta_rule"},
    {"max_self_attn_length": 6, "sink_tokens": 2},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_packed_equals_separate(attached, settings):
    model = attached(**settings)
    lengths = ((5, 17, 9), (12, 1, 18))
    rows = [[tokens(1, n, seed=10 * i + n) for n in row] for i, row in enumerate(lengths)]
    packed = torch.cat([torch.cat(row, 1) for row in rows])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    with torch.no_grad():
        got = model(input_ids=packed, position_ids=positions, use_cache=False).logits
        want = torch.cat([torch.cat([model(input_ids=x).logits for x in row], 1) for row in rows])
    assert_near(got, want)


def test_packed_gradients_equal_separate(attached):
    model = attached()
    a, b = tokens(1, 11), tokens(1, 20, seed=1)
    positions = torch.cat([torch.arange(11), torch.arange(20)])[None]
    weight = model.get_submodule(next(n for n, _ in model.named_modules() if n.endswith("liza"))).key_features.weight

    def gradient(*calls):
        model.zero_grad()
        sum(model(input_ids=x, use_cache=False, **k).logits.pow(2).sum() for x, k in calls).backward()
        return weight.grad.clone()

    packed = gradient((torch.cat([a, b], 1), {"position_ids": positions}))
    assert_near(packed, gradient((a, {}), (b, {})), 1e-4)
    assert packed.abs().max() > 0


def test_where_a_packed_sequence_begins():
    """Wherever positions do not go on by one: anew, further on, backwards or in place."""
    positions = torch.tensor([[0, 1, 2, 7, 8, 9, 0, 1], [4, 5, 3, 4, 4, 5, 6, 9]])
    want = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 2, 3]])
    assert torch.equal(sequence_ids(positions), want)


@pytest.mark.parametrize("settings", SETTINGS)
def test_positions_that_jump_forward_begin_a_sequence(attached, settings):
    """A row that holds the end of one document, from position 7 on, behind the beginning of another."""
    model = attached(**settings)
    rows, starts = [tokens(1, n, seed=n) for n in (5, 9, 4)], (0, 7, 40)
    at = [torch.arange(start, start + row.shape[1])[None] for start, row in zip(starts, rows, strict=True)]
    with torch.no_grad():
        got = model(input_ids=torch.cat(rows, 1), position_ids=torch.cat(at, 1), use_cache=False).logits
        want = [model(input_ids=row, position_ids=p, use_cache=False).logits for row, p in zip(rows, at, strict=True)]
    assert_near(got, torch.cat(want, 1))
