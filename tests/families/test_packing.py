"""Check 4 of INTEGRATION.md: packed rows equal separate rows."""

import pytest
import torch

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
