"""Attention by blocks equals attention under the mask of all pairs."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.tiny import tiny_model
from tests.families.models import randomize, tokens
from tptt import MemoryConfig, attach_memory
from tptt.hf import masks
from tptt.hf.window_attention import Band, banded_attention

W = 5


def qkv(rows, length, heads=4, kv_heads=2, width=8):
    generator = torch.Generator().manual_seed(length)
    shapes = [(rows, heads, length, width), *[(rows, kv_heads, length, width)] * 2]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def dense(q, k, v, band, scaling=None):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    mask = band.dense(len(q), q.shape[2], q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)


def padded(length, side):
    valid = torch.ones(2, length, dtype=torch.bool)
    if side == "left":
        valid[0, :7] = False
    elif side == "right":
        valid[1, -4:] = False
    else:
        valid[0, 9:12] = False
    return valid


LENGTHS = (11, 15, 16, 31, 64)
BANDS = {
    "plain": lambda length: Band(W, 0, None, None),
    "sinks": lambda length: Band(W, 3, None, None),
    "one": lambda length: Band(1, 2, None, None),
    "left": lambda length: Band(W, 0, padded(length, "left"), None),
    "left, sinks": lambda length: Band(W, 3, padded(length, "left"), None),
    "right": lambda length: Band(W, 0, padded(length, "right"), None),
    "inside, sinks": lambda length: Band(W, 2, padded(max(length, 13), "inside")[:, :length], None),
    "packed": lambda length: Band(W, 0, None, (torch.arange(length) * 3 // length).expand(2, -1)),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", BANDS)
def test_blocks_equal_the_mask_of_all_pairs(name, length):
    band, (q, k, v) = BANDS[name](length), qkv(2, length)
    assert band.fits_blocks(length) or length <= 2 * W
    got, want = banded_attention(q, k, v, band, 0.3), dense(q, k, v, band, 0.3)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (got, want)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("past", [1, W - 1, W])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_blocks_behind_a_cache(side, past, length):
    """The keys of the cache come first: what they were without it, the first queries left out."""
    q, k, v = qkv(2, past + length)
    band = Band(W, 0, None if side is None else padded(past + length, side), None, past)
    assert band.fits_blocks(length) or length <= 2 * W
    got = banded_attention(q[:, :, past:], k, v, band, 0.3)
    want = dense(q, k, v, Band(W, 0, band.valid, None), 0.3)[:, :, past:]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(
        band.dense(2, length, q.device), Band(W, 0, band.valid, None).dense(2, past + length, q.device)[:, :, past:]
    )


def test_a_cache_that_holds_more_than_a_window_is_left_to_the_mask_of_all_pairs():
    assert not Band(W, 0, None, None, W + 1).fits_blocks(40)
    with pytest.raises(ValueError, match="neither sinks nor packed"):
        Band(W, 2, None, None, 1)


def test_sinks_of_packed_rows_are_left_to_the_mask_of_all_pairs():
    sequences = torch.zeros(1, 40, dtype=torch.long)
    assert not Band(W, 2, None, sequences).fits_blocks(40)
    assert Band(W, 0, None, sequences).fits_blocks(40)
    assert not Band(W, 0, None, None).fits_blocks(2 * W)


FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sinks", [0, 2])
def test_a_model_computes_the_same_by_blocks(family, sinks, monkeypatch):
    """Padded and packed rows, with gradients; blocks are really taken where the base goes through the interface."""
    settings = {"max_self_attn_length": W, "feature_width": 16, "sink_tokens": sinks}
    try:
        model = randomize(attach_memory(tiny_model(family), MemoryConfig(**settings)))
    except ValueError as error:
        pytest.skip(str(error))
    ids, mask = tokens(2, 33), torch.ones(2, 33, dtype=torch.long)
    mask[0, :6] = 0
    packed = {"position_ids": torch.cat([torch.arange(13), torch.arange(20)])[None].expand(2, -1)}
    used = []
    real = masks.Band.fits_blocks
    for options in ({}, {"attention_mask": mask}, packed):
        found = []
        for by_blocks in (True, False):
            monkeypatch.setattr(
                masks.Band, "fits_blocks", lambda self, n, b=by_blocks: b and (used.append(real(self, n)) or used[-1])
            )
            model.zero_grad()
            logits = model(input_ids=ids, use_cache=False, **options).logits
            real_ones = mask.bool() if "attention_mask" in options else torch.ones_like(mask, dtype=torch.bool)
            logits[real_ones].pow(2).mean().backward()
            found.append(
                (logits[real_ones].detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None])
            )
        (a, grads_a), (b, grads_b) = found
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
        for x, y in zip(grads_a, grads_b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-5 * float(y.abs().max()) + 1e-8)
    assert any(used) is (family != "gpt_oss")  # whose learned sinks are computed by eager attention alone


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "qwen3"])
@pytest.mark.parametrize("padding", [False, True])
def test_a_prompt_in_pieces_is_read_by_blocks(family, padding, monkeypatch):
    model = randomize(attach_memory(tiny_model(family), MemoryConfig(max_self_attn_length=W, feature_width=16))).eval()
    ids, mask = tokens(2, 40), torch.ones(2, 40, dtype=torch.long)
    if padding:
        mask[0, :6] = 0
    used, real = [], masks.Band.fits_blocks
    monkeypatch.setattr(
        masks.Band, "fits_blocks", lambda self, n: used.append((self.past, real(self, n))) or used[-1][1]
    )
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        cache, found = None, []
        for begin, end in ((0, 17), (17, 20), (20, 39), (39, 40)):
            given = {"attention_mask": mask[:, :end]} if padding else {}
            if padding:
                given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, begin:end]
            out = model(input_ids=ids[:, begin:end], past_key_values=cache, use_cache=True, **given)
            cache = out.past_key_values
            found.append(out.logits)
    got, keep = torch.cat(found, 1), mask.bool()
    if padding:
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            want = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(got[keep], want[keep], rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    assert (0, True) in used and (W - 1, True) in used


@pytest.mark.parametrize(("family", "by_blocks"), [("afmoe", 1), ("doge", 0), ("deepseek_v32", 0), ("glm_moe_dsa", 0)])
def test_a_forward_that_reads_its_mask_gets_the_mask_of_all_pairs(family, by_blocks, monkeypatch):
    model = randomize(attach_memory(tiny_model(family), MemoryConfig(max_self_attn_length=W, feature_width=16))).eval()
    made = []
    kept = masks.Band.fits_blocks
    monkeypatch.setattr(masks.Band, "fits_blocks", lambda self, n: made.append(self) or kept(self, n))
    assert model(input_ids=tokens(2, 33), use_cache=False).logits.isfinite().all()
    assert bool(made) is bool(by_blocks)
