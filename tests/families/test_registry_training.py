"""The named families with LoRA, in training, saved and loaded."""

import copy
import zlib

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, tokens
from tests.families.test_registry import NAMED
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory
from tptt.hf import find_attention

LAYOUTS = ("llama", "gpt2", "gpt_neox", "falcon", "phi3", "opt", "bloom", "phi", "deepseek_v3", "qwen3_next")
WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}


def lora_of(base) -> LoraConfig:
    """On the projections that the memory reads, and on the output projection."""
    found = find_attention(base.base_model)[0]
    targets = [n for n in found.sizes.layout.parts if getattr(found.module, n).weight.ndim == 2]
    turned = type(getattr(found.module, targets[0])).__name__ == "Conv1D"
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=turned, task_type="CAUSAL_LM")


def moved(model):
    """Every parameter of memory and LoRA off its start, by its name: whichever of the two came first."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".liza." in name or "lora_" in name:
                short = name.replace("base_model.model.", "").replace("backbone.", "")
                generator = torch.Generator().manual_seed(zlib.crc32(short.encode()))
                p.copy_(
                    p.new_empty(p.shape).normal_(0, 0.1, generator=generator) + (1.0 if "output_scale" in name else 0)
                )
    return model.eval()


@pytest.mark.parametrize("family", LAYOUTS)
def test_lora_before_or_after_the_memory(family):
    base, ids = tiny_model(family), tokens(2, 14)
    config = MemoryConfig() if family in ("bloom",) else MemoryConfig(**WINDOW)
    lora = lora_of(base)
    before = attach_memory(get_peft_model(copy.deepcopy(base), lora), config)
    after = get_peft_model(attach_memory(copy.deepcopy(base), config), lora)
    with torch.no_grad():
        a, b = (moved(model)(input_ids=ids).logits for model in (before, after))
        assert_near(a, b, 1e-6)
        assert not torch.allclose(a, base(input_ids=ids).logits)
        assert_near(before.merge_and_unload()(input_ids=ids).logits, a)


def gradients(model, checkpointing, **batch):
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()
    else:
        model.gradient_checkpointing_disable()
    model.train()
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", NAMED)
def test_gradient_checkpointing_changes_nothing(family):
    """Padding reaches the memory when its layer is computed again, and every parameter of the memory learns."""
    model = moved(attach_memory(tiny_model(family), MemoryConfig(operator="gated_delta_rule")))
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0
    batch = {"input_ids": tokens(2, 14), "attention_mask": mask}
    plain, again = (gradients(model, checkpointing, **batch) for checkpointing in (False, True))
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert_near(again[name], gradient, 1e-5)
        if ".liza." in name:
            assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("family", NAMED)
def test_saved_and_loaded(family, tmp_path):
    base = tiny_model(family)
    base.save_pretrained(tmp_path / "base")
    config = TpttConfig(
        base_model_name=tmp_path / "base", lora_config=lora_of(base).to_dict(), operator="gated_delta_rule"
    )
    model = moved(TpttModel(config))
    model.save_pretrained(tmp_path / "out")
    again = TpttModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        want = model(input_ids=tokens(2, 14)).logits
        assert torch.equal(again(input_ids=tokens(2, 14)).logits, want)
        model.merge_and_unload().save_pretrained(tmp_path / "whole")
        assert_near(TpttModel.from_pretrained(tmp_path / "whole").eval()(input_ids=tokens(2, 14)).logits, want)
