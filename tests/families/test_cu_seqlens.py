"""Rows packed with `cu_seqlens` equal separate rows, forward and in their gradients."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, randomize, tokens
from tptt import MemoryConfig, attach_memory

SETTINGS = [{}, {"max_self_attn_length": 6, "sink_tokens": 2}, {"operator": "delta_product", "memory_only_layers": [0]}]
LENGTHS = (5, 1, 17, 9)


@pytest.fixture(params=SETTINGS, ids=str)
def model(request):
    return randomize(attach_memory(tiny_model("llama"), MemoryConfig(**request.param)))


def rows():
    return [tokens(1, n, seed=n) for n in LENGTHS]


def bounds(dtype=torch.int32):
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=dtype)


@pytest.mark.parametrize("name", ["cu_seqlens", "cu_seq_lens_q"])
def test_packed_equals_separate(model, name):
    """Also where the model would keep a cache by itself (prefill)."""
    with torch.no_grad():
        want = torch.cat([model(input_ids=x).logits for x in rows()], 1)
        out = model(input_ids=torch.cat(rows(), 1), **{name: bounds()})
    assert_near(out.logits, want)
    assert out.past_key_values is None


def test_gradients(model):
    def gradients(*calls):
        model.zero_grad()
        for call in calls:
            model(**call, use_cache=False).logits.square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    got = gradients({"input_ids": torch.cat(rows(), 1), "cu_seqlens": bounds(torch.int64)})
    want = gradients(*({"input_ids": x} for x in rows()))
    assert any(".liza." in n for n in got)
    for name, gradient in want.items():
        assert_near(got[name], gradient, 2e-4)


def test_the_flattening_collator(model):
    """What transformers' padding-free collator makes, with the bounds or with positions alone."""
    features = [{"input_ids": x[0].tolist(), "labels": x[0].tolist()} for x in rows()]
    for with_bounds in (False, True):
        batch = DataCollatorWithFlattening(return_flash_attn_kwargs=with_bounds)(features)
        labels = batch.pop("labels")
        assert labels.shape == batch["input_ids"].shape
        with torch.no_grad():
            assert_near(model(**batch).logits, torch.cat([model(input_ids=x).logits for x in rows()], 1))


def test_positions_alone_in_a_call_that_keeps_a_cache(model):
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with torch.no_grad():
        got = model(input_ids=torch.cat(rows(), 1), position_ids=positions, use_cache=True)
        assert_near(got.logits, torch.cat([model(input_ids=x).logits for x in rows()], 1))


def test_refusals(model):
    ids = torch.cat(rows(), 1)
    cache = model(input_ids=tokens(1, 3), use_cache=True).past_key_values
    for options, message in (
        ({"cu_seqlens": torch.tensor([0, 5])}, "must rise from 0 to the 32 tokens"),
        ({"cu_seqlens": torch.tensor([0, 9, 5, 32])}, "must rise from 0"),
        ({"cu_seqlens": bounds(), "attention_mask": torch.ones_like(ids)}, "have no padding"),
        ({"cu_seqlens": bounds(), "past_key_values": cache}, "cannot go on from a cache"),
    ):
        with pytest.raises(ValueError, match=message):
            model(input_ids=ids, **options)
    with pytest.raises(ValueError, match="packs into one row, got a batch of 2"):
        model(input_ids=ids.repeat(2, 1), cu_seqlens=bounds())
