"""TpttConfig takes what it knows, refuses the rest with what is valid, and survives JSON."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tptt import TpttConfig, TpttModel
from tptt.hf.base_model import load_base


@pytest.fixture
def family():
    return "llama"


@pytest.mark.parametrize(
    "name",
    [
        "to_dict",
        "save_pretrained",
        "validate",
        "get_text_config",
        "from_pretrained",
        "sub_configs",
        "operatr",
        "_anything",
    ],
)
def test_what_is_no_setting_is_refused(base, name):
    """A method's name would overwrite the method."""
    for given in ({}, {"base_model_name": str(base)}):
        with pytest.raises(
            ValueError, match=f"unknown configuration key {name}; valid are .*base_model_name.*operator"
        ):
            TpttConfig(**given, **{name: 3})


@pytest.mark.parametrize("name", ["to_dict", "save_pretrained", "vocab_size", "memory_config"])
def test_what_is_no_setting_is_refused_with_a_checkpoint(config, tmp_path, name):
    TpttModel(config(feature_width=16)).save_pretrained(tmp_path)
    for load in (AutoConfig, TpttConfig, AutoModelForCausalLM):
        with pytest.raises(
            ValueError, match=f"{name} cannot be set in a converted model's configuration; valid are .*operator"
        ):
            load.from_pretrained(tmp_path, **{name: 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 7),
        ("hidden_size", 5),
        ("num_hidden_layers", 1),
        ("tie_word_embeddings", True),
        ("max_position_embeddings", 9),
    ],
)
def test_what_belongs_to_the_base_cannot_be_set(base, name, value):
    there = getattr(AutoConfig.from_pretrained(base), name)
    with pytest.raises(
        ValueError, match=f"{name}={value}: a converted model takes this from its base .there it is {there}"
    ):
        TpttConfig(base_model_name=str(base), **{name: value})
    with pytest.raises(ValueError, match=f"{name}={value}: .*no base is given.*leave it out"):
        TpttConfig(**{name: value})
    assert getattr(TpttConfig(base_model_name=str(base), **{name: there}), name) == there


def test_json_holds_everything(config):
    settings = config(max_self_attn_length=9, mag_weight=0.25, layers=(0, 1), feature_width=(16, 32))
    again = TpttConfig.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again.to_dict() == settings.to_dict()
    assert again.memory_config() == settings.memory_config()
    once = TpttConfig.from_dict(json.loads(settings.to_json_string()))
    assert json.loads(once.to_json_string()) == json.loads(settings.to_json_string())


def test_settings_given_with_a_checkpoint_are_checked(config, tmp_path):
    TpttModel(config(feature_width=16)).save_pretrained(tmp_path)
    for load in (AutoConfig, TpttConfig, AutoModelForCausalLM, TpttModel):
        with pytest.raises(ValueError, match="unknown mix_gate 'x'; valid are mlp, token, head, none"):
            load.from_pretrained(tmp_path, mix_gate="x")


def test_tokens_that_a_trainer_sets_come_back(config, tmp_path):
    model = TpttModel(config(feature_width=16))
    model.config.pad_token_id = 2
    model.save_pretrained(tmp_path)
    assert TpttConfig.from_pretrained(tmp_path).pad_token_id == 2
    assert TpttModel.from_pretrained(tmp_path).config.pad_token_id == 2


def test_the_text_part_is_the_base_s(config):
    settings = config()
    assert settings.get_text_config() is settings.text_config
    assert settings.get_text_config(decoder=True).vocab_size == settings.vocab_size
    assert TpttConfig().get_text_config().model_type == "tptt"


@pytest.mark.parametrize("lora", [True, False])
def test_a_model_leaves_its_configuration_as_it_was(config, lora):
    settings = config(lora, feature_width=16)
    before, base = settings.to_dict(), settings.text_config
    model = TpttModel(settings, attn_implementation="eager", dtype=torch.bfloat16)
    assert settings.to_dict() == before and settings.text_config is base
    assert (
        settings.name_or_path == "" and model.config is not settings and model.config.text_config is model.inner.config
    )
    assert TpttModel(settings).dtype == torch.float32
    other = TpttModel(settings, base=load_base(settings))
    other.config.mag_weight = 0.125
    assert settings.to_dict() == before


def test_options_for_loading_make_no_sense_with_a_base(config):
    settings = config(feature_width=16)
    with pytest.raises(TypeError, match="dtype: these are for loading a base, and one is given"):
        TpttModel(settings, base=load_base(settings), dtype=torch.bfloat16)


def test_layer_weights_are_those_of_the_model(config):
    model = TpttModel(config(feature_width=16, layer_mag_weights=[0.25, 0.75]))
    assert [float(v) for n, v in model.named_buffers() if n.endswith("mag_weight")] == [0.25, 0.75]
    with pytest.raises(ValueError, match="3 Memory-as-Gate weights for 2 layers with a memory"):
        TpttModel(config(feature_width=16, layer_mag_weights=[0.25, 0.75, 0.5]))
    with pytest.raises(ValueError, match=r"layer_mag_weights must be a number in \[0, 1\], got 2"):
        config(layer_mag_weights=[2])


def test_attributes_that_others_set_do_not_spoil_a_checkpoint(config, tmp_path, caplog):
    model = TpttModel(config(feature_width=16))
    model.config.my_note = "mine"
    with caplog.at_level("WARNING", "tptt"):
        model.save_pretrained(tmp_path)
    assert "no settings of a converted model: config.my_note" in caplog.text
    assert not hasattr(TpttModel.from_pretrained(tmp_path).config, "my_note")
