"""What a checkpoint says of itself is what the model in it is."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families.models import assert_near, randomize, tokens
from tptt import (
    AdjustMaGWeightCallback,
    MemoryConfig,
    TpttConfig,
    TpttModel,
    attach_memory,
    detach_memory,
    set_mag_weight,
)
from tptt.hf import memory_layers
from tptt.hf.patch import set_layer_mag_weights

IDS = tokens(1, 12)


@pytest.fixture
def family():
    return "llama"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def saved(model, place):
    """config.json of ``model``, and the model loaded again, which computes the same."""
    want = logits(model)
    model.save_pretrained(place)
    again = AutoModelForCausalLM.from_pretrained(place)
    assert_near(logits(again), want, 1e-5)
    return json.loads((place / "config.json").read_text()), again


@pytest.mark.parametrize("lora", [True, False])
def test_mag_weight_after_a_schedule(config, tmp_path, lora):
    model = TpttModel(config(lora, feature_width=16, mag_weight=0.3))
    assert saved(model, tmp_path / "start")[0]["mag_weight"] == 0.3
    callback = AdjustMaGWeightCallback(model, initial_weight=0.1, final_weight=0.7, transition_step=10)
    set_mag_weight(model, 0.7)
    found, again = saved(randomize(model), tmp_path / "end")
    assert found["mag_weight"] == 0.7 and found.get("layer_mag_weights") is None and callback
    assert again.config.mag_weight == 0.7


def test_mag_weights_that_differ_from_layer_to_layer(config, tmp_path):
    model = randomize(TpttModel(config(feature_width=16)))
    set_layer_mag_weights(model, [0.2, 0.6])
    found, again = saved(model, tmp_path / "saved")
    assert found["layer_mag_weights"] == [0.2, 0.6] and found["mag_weight"] == pytest.approx(0.4)
    assert again.config.layer_mag_weights == [0.2, 0.6]
    set_mag_weight(model, 0.25)
    for load in (TpttModel, AutoModelForCausalLM):
        one = load.from_pretrained(tmp_path / "saved", mag_weight=0.25)
        assert one.config.layer_mag_weights is None and torch.equal(logits(one), logits(model))
        two = load.from_pretrained(tmp_path / "saved", layer_mag_weights=[0.5, 0.25])
        assert [float(x.memory.mag_weight) for x in memory_layers(two)] == [0.5, 0.25]
    found, _ = saved(again, tmp_path / "again")
    assert found["layer_mag_weights"] == [0.2, 0.6]


def test_layers_whose_mu_is_fixed_do_not_count(config, tmp_path):
    model = randomize(TpttModel(config(feature_width=16, memory_only_layers=[1], mag_weight=0.25)))
    found, again = saved(model, tmp_path)
    assert found["mag_weight"] == 0.25 and found.get("layer_mag_weights") is None
    assert found["memory_only_layers"] == [1] and found["mix_gate"] == "mlp"
    assert [x.mu_fixed for x in memory_layers(again)] == [False, True]


@pytest.mark.parametrize(
    "memory",
    [
        {"layers": (1,), "max_self_attn_length": 4, "sink_tokens": 1},
        {"feature_width": (16, 32), "operator": "gated_delta_rule", "mag_weight": 0.75},
        {"feature_width": 32, "memory_only_layers": "all", "states": "query_head"},
        {"mix_gate": "token", "feature_map": "silu", "write_gate": "constant"},
    ],
    ids=str,
)
def test_a_memory_that_was_attached_anew(config, tmp_path, memory):
    """The configuration follows the memory that is there, not the one that the model was made with."""
    model = TpttModel(config(feature_width=16))
    detach_memory(model.backbone)
    attach_memory(model.backbone, MemoryConfig(**{"feature_width": 16} | memory))
    found, again = saved(randomize(model), tmp_path)
    layers = memory_layers(again)
    for name, value in memory.items():
        assert found[name] == (list(value) if isinstance(value, tuple) else value), name
    assert [x.layer for x in layers] == list(memory.get("layers", (0, 1)))
    widths = memory.get("feature_width", 16)
    assert [x.memory.config.feature_width for x in layers] == list(
        widths if isinstance(widths, tuple) else [widths] * len(layers)
    )


def test_settings_changed_behind_the_model_s_back_are_not_saved(config, tmp_path):
    model = randomize(TpttModel(config(feature_width=16, max_self_attn_length=6)))
    model.config.layers, model.config.max_self_attn_length, model.config.feature_width = (0,), 3, 64
    found, _ = saved(model, tmp_path)
    assert (found["layers"], found["max_self_attn_length"], found["feature_width"]) == ("all", 6, 16)


def test_a_model_without_a_memory_is_not_saved(config, tmp_path):
    model = TpttModel(config(feature_width=16))
    detach_memory(model.backbone)
    with pytest.raises(ValueError, match="carries no memory .*nothing to save but the base"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtype(config, tmp_path, lora, dtype):
    model = randomize(TpttModel(config(lora, feature_width=16), dtype=dtype))
    found, again = saved(model, tmp_path)
    name = str(dtype).removeprefix("torch.")
    assert found["dtype"] == found["text_config"]["dtype"] == name
    assert again.dtype == again.inner.dtype == again.config.dtype == again.config.text_config.dtype == dtype


@pytest.mark.parametrize("lora", [True, False])
def test_dtype_of_a_model_that_was_cast(config, tmp_path, lora):
    """The base's weights are those of bfloat16, and computed with in float32."""
    model = randomize(TpttModel(config(lora, feature_width=16), dtype=torch.bfloat16)).float()
    found, again = saved(model, tmp_path / "float")
    assert found["dtype"] == "float32" and found["text_config"]["dtype"] == ("bfloat16" if lora else "float32")
    assert again.dtype == again.inner.dtype == again.config.dtype == torch.float32
    types = {n: p.dtype for n, p in model.half().named_parameters()}
    model.save_pretrained(tmp_path / "half")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert {n: p.dtype for n, p in again.named_parameters()} == types and set(types.values()) == {torch.float16}


def test_base_name_and_revision(config, base, tmp_path):
    model = randomize(TpttModel(config(feature_width=16), revision="main"))
    found, again = saved(model, tmp_path / "out")
    assert found["base_model_name"] == str(base) and found["base_model_revision"] == "main"
    assert found["text_config"]["_name_or_path"] == str(base)
    base.rename(tmp_path / "moved")
    again = TpttModel.from_pretrained(tmp_path / "out", base_model_name=tmp_path / "moved")
    found, again = saved(again, tmp_path / "again")
    assert found["base_model_name"] == str(tmp_path / "moved")
    found, _ = saved(again.merge_and_unload(), tmp_path / "merged")
    assert found["weights_format"] == "full" and found["lora_config"] is None
    assert found["text_config"]["_name_or_path"] == found["base_model_name"] == str(tmp_path / "moved")


def test_adapters_and_which_of_them_are_at_work(config, tmp_path):
    settings = config(feature_width=16)
    model = TpttModel(
        TpttConfig(**{**settings.to_dict(), "lora_config": {"one": settings.lora_config, "two": settings.lora_config}})
    )
    model.backbone.set_adapter("two")
    found, _ = saved(randomize(model), tmp_path / "named")
    assert list(found["lora_config"]) == ["one", "two"] and found["active_adapters"] == ["two"]
    plain, _ = saved(randomize(TpttModel(settings)), tmp_path / "plain")
    assert plain["lora_config"]["peft_type"] == "LORA" and plain.get("active_adapters") is None
    assert "base_model_name_or_path" not in plain["lora_config"]


def test_where_the_attention_implementation_comes_from(config, tmp_path):
    model = TpttModel(config(feature_width=16), attn_implementation="eager")
    assert model.config._attn_implementation == model.inner.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == model.inner.config._attn_implementation == "sdpa"
    found, again = saved(model, tmp_path)
    assert "_attn_implementation" not in json.dumps(found)  # transformers leaves it to whoever loads
    assert again.config._attn_implementation == again.inner.config._attn_implementation == "sdpa"
