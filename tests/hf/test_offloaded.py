"""Bases whose weights accelerate keeps in CPU memory or on disk; the device that computes is the CPU here."""

import accelerate
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.families.models import assert_near, randomize, tokens
from tptt import MemoryConfig, TpttModel, attach_memory, calibrate, set_mag_weight
from tptt.hf import memories, memory_layers

IDS = tokens(2, 20)
pytestmark = pytest.mark.filterwarnings("ignore:.*offloaded modules:UserWarning")


@pytest.fixture
def family():
    return "llama"


def logits(model, **options):
    with torch.no_grad():
        return model.eval()(IDS, **options).logits


def places(second="disk", prefix=""):
    names = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    return {prefix + "model.layers.1": second} | {prefix + n: "cpu" for n in names}


@pytest.fixture
def spilled(tmp_path):
    return {"device_map": places(), "offload_folder": str(tmp_path / "offload")}


@pytest.fixture
def model(config):
    return randomize(TpttModel(config(max_self_attn_length=6, feature_width=16, mix_gate="none"))).eval()


def generated(model):
    return model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(IDS))


def test_the_base_is_spilled_indeed(base, spilled):
    found = AutoModelForCausalLM.from_pretrained(base, **spilled)
    assert found.model.layers[1].mlp.up_proj.weight.is_meta and not found.model.layers[0].mlp.up_proj.weight.is_meta


@pytest.mark.parametrize("lora", [True, False])
def test_a_fresh_model(config, spilled, lora):
    """Its memory begins as with a base that is not spilled; LoRA's B is 0."""
    settings = config(lora, max_self_attn_length=6, feature_width=16)
    model = TpttModel(settings, **spilled)
    assert not any(p.is_meta for m in memories(model) for p in m.parameters())
    assert_near(logits(model), logits(TpttModel(settings)), 1e-5)
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("load", [TpttModel, AutoModelForCausalLM])
@pytest.mark.parametrize("way", ["adapter", "full", "merged"])
def test_a_checkpoint(model, spilled, load, way, tmp_path):
    model.config.weights_format = "adapter" if way == "adapter" else "full"
    if way == "merged":
        model.merge_and_unload()
    model.save_pretrained(tmp_path / "out")
    for prefix in ("", "backbone."):
        again = load.from_pretrained(tmp_path / "out", **spilled | {"device_map": places(prefix=prefix)})
        assert again.inner.model.layers[1].mlp.up_proj.weight.is_meta
        assert_near(logits(again), logits(model), 1e-5)
        assert torch.equal(generated(again), generated(model))
    again.save_pretrained(tmp_path / "again")
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "again")), logits(model), 1e-5)


@pytest.mark.parametrize("offload", [accelerate.cpu_offload, accelerate.disk_offload])
def test_a_model_that_is_offloaded_afterwards(model, offload, tmp_path):
    want, told = logits(model), generated(model)
    place = {"offload_dir": str(tmp_path / "disk")} if offload is accelerate.disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **place)
    assert model.inner.model.layers[0].mlp.up_proj.weight.is_meta
    assert_near(logits(model), want, 1e-6)
    assert torch.equal(generated(model), told)
    model.save_pretrained(tmp_path / "out")
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "out")), want, 1e-6)


def test_what_is_set_before_the_first_call_is_not_lost(model):
    set_mag_weight(model, 0.25)
    want = logits(model)
    set_mag_weight(model, 0.5)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    set_mag_weight(model, 0.25)
    assert [float(x.memory.mag_weight) for x in memory_layers(model)] == [0.25, 0.25]
    assert_near(logits(model), want, 1e-6)


def test_a_memory_attached_to_an_offloaded_base(base, spilled):
    settings = MemoryConfig(feature_width=16, max_self_attn_length=6)
    models = [AutoModelForCausalLM.from_pretrained(base, **options) for options in ({}, spilled)]
    plain, away = (calibrate(attach_memory(m, settings), IDS) for m in models)
    assert_near(logits(away), logits(plain), 1e-5)


def test_adapters_that_need_the_weights_are_refused(config, spilled):
    for more in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}):
        settings = config(feature_width=16)
        settings.lora_config |= more
        with pytest.raises(
            ValueError, match=f"{next(iter(more))} needs the base's weights, and those of .*layers.1.* are offloaded"
        ):
            TpttModel(settings, **spilled)
    settings.lora_config = {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]}
    with pytest.raises(ValueError, match="LN_TUNING needs the base's weights"):
        TpttModel(settings, **spilled)


def test_a_checkpoint_with_weights_of_offloaded_modules(config, spilled, tmp_path):
    settings = config(feature_width=16)
    settings.lora_config |= LoraConfig(bias="lora_only", target_modules=["q_proj"]).to_dict() | {
        "modules_to_save": ["norm"]
    }
    randomize(TpttModel(settings)).save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="modules_to_save needs the base's weights"):
        TpttModel.from_pretrained(tmp_path / "out", **spilled)


def test_lora_is_folded_into_an_offloaded_base(model, spilled, tmp_path):
    model.save_pretrained(tmp_path / "out")
    again = TpttModel.from_pretrained(tmp_path / "out", **spilled).merge_and_unload()
    assert_near(logits(again), logits(model), 1e-5)
    again.save_pretrained(tmp_path / "merged")
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "merged")), logits(model), 1e-5)
