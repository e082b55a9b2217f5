"""Bad input gets an error that names what was wrong and what is valid."""

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory, set_mag_weight
from tptt.surgery import UnsupportedAttentionError


@pytest.fixture
def family():
    return "llama"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operatr": "delta_rule"}, "unknown configuration key operatr; valid are"),
        ({"states": "layer"}, "unknown states 'layer'; valid are query_head, kv_head"),
        ({"operator": "titan"}, "unknown operator 'titan'; valid are delta_rule"),
        ({"write_gate": "x"}, "unknown write_gate 'x'; valid are learned"),
        ({"mix_gate": "x"}, "unknown mix_gate 'x'; valid are token"),
        ({"feature_map": "x"}, "unknown feature_map 'x'"),
        ({"max_self_attn_length": 0}, "max_self_attn_length must be an integer of 1 or more, got 0"),
        ({"max_self_attn_length": 2.5}, "max_self_attn_length must be an integer"),
        ({"mag_weight": 1.01}, r"mag_weight must be a number in \[0, 1\], got 1.01"),
        ({"mag_weight": -0.1}, "mag_weight must be"),
        ({"mag_weight": float("nan")}, "mag_weight must be"),
        ({"sink_tokens": 2}, "set max_self_attn_length as well"),
        ({"weights_format": "zip"}, "unknown weights_format 'zip'"),
    ],
)
def test_configuration(settings, message):
    with pytest.raises(ValueError, match=message):
        TpttConfig(**settings)


def test_base_model_missing(tmp_path):
    with pytest.raises(OSError, match=r"nowhere.*was not found.*token="):
        TpttConfig(base_model_name=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="base_model_name is missing"):
        TpttModel(TpttConfig())


def test_base_model_not_causal(tmp_path):
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(ValueError, match=r"t5.*cannot be used as a causal language model"):
        TpttModel(TpttConfig(base_model_name=tmp_path / "t5"))


def test_unknown_attention_names_module_and_layouts():
    config = OPTConfig(
        vocab_size=30, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        UnsupportedAttentionError, match=r"self_attn \(OPTAttention\).*out_proj.*known layouts: separate"
    ):
        attach_memory(model)
    assert not [n for n, _ in model.named_modules() if "liza" in n]
    with pytest.raises(UnsupportedAttentionError, match="no attention module"):
        attach_memory(torch.nn.Linear(2, 2))


def test_mag_weight(config):
    model = TpttModel(config())
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        set_mag_weight(model, 1.5)
    with pytest.raises(ValueError, match="carries no memory"):
        set_mag_weight(torch.nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match="already carries a memory"):
        attach_memory(model.backbone, MemoryConfig())


def test_window_refuses_what_it_cannot_bound(config):
    model = TpttModel(config(max_self_attn_length=4))
    with pytest.raises(ValueError, match="must be 2-D"):
        model(input_ids=torch.ones(1, 6, dtype=torch.long), attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))
