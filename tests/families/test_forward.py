"""Checks 1 and 3 of INTEGRATION.md: mu = 0 is the base; no token sees the future."""

import pytest
import torch

from tptt import MemoryConfig, attach_memory, detach_memory, set_mag_weight

from .models import assert_near, build, randomize, tokens


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mu_zero_is_the_base_and_detaching_gives_it_back(family, attention):
    model, ids = build(family, attention), tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    before = [model(input_ids=ids).logits, model(input_ids=ids, attention_mask=mask).logits]
    randomize(attach_memory(model, MemoryConfig(mag_weight=0.5)))
    assert not torch.equal(model(input_ids=ids).logits, before[0])
    set_mag_weight(model, 0.0)
    assert torch.equal(model(input_ids=ids).logits, before[0])
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before[1])
    detach_memory(model)
    assert torch.equal(model(input_ids=ids).logits, before[0])
    assert not [n for n, _ in model.named_modules() if n.endswith("liza")]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [{}, {"max_self_attn_length": 8}, {"max_self_attn_length": 8, "sink_tokens": 2}])
@pytest.mark.parametrize("padded", [False, True])
def test_the_future_is_never_seen(attached, attention, settings, padded):
    model, ids = attached(attention, **settings), tokens(2, 40)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :9] = 0
        mask[1, 35:] = 0
    other = ids.clone()
    other[:, 25:] = (other[:, 25:] - 3 + 5) % 58 + 3
    arguments = {"attention_mask": mask} if padded else {}
    with torch.no_grad():
        a, b = (model(input_ids=x, **arguments).logits[:, :25] for x in (ids, other))
    real = mask[:, :25].bool()  # at a padded place eager attention itself averages over everything
    assert_near(a[real], b[real], 1e-6)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids, **arguments).logits[1, 30], model(input_ids=other).logits[1, 30])


@pytest.mark.parametrize("settings", [{}, {"max_self_attn_length": 8}])
def test_eager_equals_sdpa(family, settings):
    ids, out = tokens(2, 30), []
    for attention in ("eager", "sdpa"):
        model = randomize(attach_memory(build(family, attention), MemoryConfig(**settings)))
        with torch.no_grad():
            out.append(model(input_ids=ids).logits)
    assert_near(*out)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(attached, side):
    model, ids = attached(max_self_attn_length=8, sink_tokens=2, operator="gated_delta_rule"), tokens(2, 30)
    pad = torch.zeros(2, 6, dtype=torch.long)
    mask = torch.ones(2, 36, dtype=torch.long)
    where = slice(0, 6) if side == "left" else slice(30, 36)
    mask[:, where] = 0
    padded = torch.cat([pad, ids] if side == "left" else [ids, pad], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        got = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits
    assert_near(got[:, 6:] if side == "left" else got[:, :30], plain)


def test_memory_sees_beyond_the_window(attached):
    ids = tokens(1, 40)
    other = ids.clone()
    other[:, 2] = 60 if int(ids[0, 2]) != 60 else 59
    for weight, seen in ((0.0, False), (0.5, True)):
        model = attached(max_self_attn_length=4, mag_weight=weight)
        with torch.no_grad():  # two layers of window 4 reach 7 tokens back
            a, b = (model(input_ids=x).logits[0, -1] for x in (ids, other))
        assert torch.equal(a, b) is not seen
