"""A peft adapter that trains a copy of the memory: modules_to_save=["liza"]."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.tiny import tiny_model
from tests.families.models import randomize, tokens
from tptt import MemoryConfig, attach_memory, calibrate, set_mag_weight
from tptt.hf import memories, memory_squares

IDS = tokens(2, 20)
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["liza"])
SETTINGS = [{}, {"cross_gate": True, "max_self_attn_length": 6}, {"mix_gate": "none", "mag_weight": 0.5}]


def attached(**settings):
    return randomize(attach_memory(tiny_model("llama"), MemoryConfig(**settings)))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def moved(model):
    """The memories at work, off where they began."""
    with torch.no_grad():
        for memory in memories(model):
            for parameter in memory.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_copy_is_at_work_and_the_original_comes_back(settings):
    model = attached(**settings)
    want = logits(model)
    adapted = get_peft_model(model, LORA).eval()
    assert torch.equal(logits(adapted), want)
    assert len(memories(adapted)) == 2
    assert not torch.allclose(logits(moved(adapted)), want, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), want)
    got = logits(adapted)
    assert torch.equal(logits(adapted.merge_and_unload()), got)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_its_mag_weight_is_set(weight):
    plain, model = (attached(mix_gate="none") for _ in range(2))
    before = logits(model)
    adapted = get_peft_model(model, LORA).eval()
    set_mag_weight(adapted, weight)
    set_mag_weight(plain, weight)
    torch.testing.assert_close(logits(adapted), logits(plain))
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)


def test_gradients_reach_the_copy_alone():
    adapted = get_peft_model(attached(), LORA)
    adapted(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    copies = {n: p for n, p in adapted.named_parameters() if ".liza." in n and p.requires_grad}
    assert copies and all(".liza.modules_to_save.default." in n for n in copies)
    assert all(p.grad is not None and p.grad.any() for p in copies.values())
    assert {id(p) for m in memories(adapted) for p in m.parameters()} == {id(p) for p in copies.values()}


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_saved_and_loaded(tmp_path, weight):
    adapted = moved(get_peft_model(attached(mix_gate="none"), LORA).eval())
    set_mag_weight(adapted, weight)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(attached(mix_gate="none"), tmp_path).eval()
    assert torch.equal(logits(again), logits(adapted))
    other = attached(mix_gate="none")
    with again.disable_adapter():
        assert torch.equal(logits(again), logits(other))


def test_calibrated_and_measured():
    plain, adapted = attached(), get_peft_model(attached(), LORA).eval()
    with memory_squares(plain) as want, memory_squares(adapted) as got:
        for model in (plain, adapted):
            logits(calibrate(model, IDS))
    assert len(got) == len(want) and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
