"""Bad input gets an error that names what was wrong and what is valid."""

import pytest
import torch
from transformers import LlamaConfig

from tests.families.models import build
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory, set_mag_weight
from tptt.hf import UnsupportedAttentionError


@pytest.fixture
def family():
    return "llama"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operatr": "delta_rule"}, "unknown configuration key operatr; valid are"),
        ({"states": "layer"}, "unknown states 'layer'; valid are kv_head, query_head"),
        ({"operator": "titan"}, "unknown operator 'titan'; valid are delta_rule"),
        ({"write_gate": "x"}, "unknown write_gate 'x'; valid are learned"),
        ({"mix_gate": "x"}, "unknown mix_gate 'x'; valid are mlp, token, head, none"),
        ({"feature_map": "x"}, "unknown feature_map 'x'"),
        ({"max_self_attn_length": 0}, "max_self_attn_length must be an integer of 1 or more, 'auto' or None, got 0"),
        ({"max_self_attn_length": 2.5}, "max_self_attn_length must be an integer"),
        ({"mag_weight": 1.01}, r"mag_weight must be a number in \[0, 1\], got 1.01"),
        ({"mag_weight": -0.1}, "mag_weight must be"),
        ({"mag_weight": float("nan")}, "mag_weight must be"),
        ({"sink_tokens": 2}, "set max_self_attn_length as well"),
        ({"weights_format": "zip"}, "unknown weights_format 'zip'"),
        ({"lora_config": {"r": 4}}, "lora_config must be a peft configuration or its to_dict.., got {'r': 4}"),
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


def test_a_plain_model_is_no_checkpoint(base):
    with pytest.raises(ValueError, match=r"is no tptt checkpoint but a model of type 'llama'.*base_model_name="):
        TpttModel.from_pretrained(base)


def test_base_model_not_causal(tmp_path):
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(ValueError, match=r"t5.*cannot be used as a causal language model"):
        TpttModel(TpttConfig(base_model_name=tmp_path / "t5"))


class StrangeAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = LlamaConfig(hidden_size=8, num_attention_heads=2)
        self.asks, self.answers = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)


def test_unknown_attention_names_what_was_found():
    model = torch.nn.ModuleDict({"first": StrangeAttention()})
    with pytest.raises(
        UnsupportedAttentionError,
        match=(
            r"first \(StrangeAttention\) has no layout.*asks \(Linear 8x8\), answers \(Linear 4x8\)"
            r".*known layouts: 'separate'"
        ),
    ):
        attach_memory(model)
    assert not [n for n, _ in model.named_modules() if "liza" in n]
    with pytest.raises(UnsupportedAttentionError, match="no attention module"):
        attach_memory(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("seperate", "unknown attention_layout 'seperate'; known are 'separate'"),
        ({"projections": ["a"]}, "attention_layout: output unknown or missing"),
        ({"projections": ["a"], "output": "b", "split": "x"}, "unknown split 'x'; valid are separate"),
        ({"projections": ["a"], "output": "b", "colour": "x"}, "attention_layout: colour unknown"),
        ("fused, qkv_proj", "no attention module with a known layout|has no layout known here"),
    ],
)
def test_a_layout_that_does_not_fit(layout, message):
    with pytest.raises(ValueError, match=message):
        attach_memory(build("llama"), MemoryConfig(attention_layout=layout))


def test_a_layout_given_in_the_configuration():
    """The names, and projections whose widths do not fit the heads."""
    given = {"projections": ["q_proj", "k_proj", "v_proj"], "output": "o_proj"}
    for layout in ("separate", given):
        model = attach_memory(build("llama"), MemoryConfig(attention_layout=layout))
        assert model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.isfinite().all()
    model = build("llama")
    model.model.layers[1].self_attn.k_proj = torch.nn.Linear(32, 13)
    with pytest.raises(UnsupportedAttentionError, match="layers.1.self_attn.*k_proj puts out 13, no multiple of"):
        attach_memory(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [0, 5]}, r"layers \[5\] have no attention here; valid are \[0, 1\]"),
        ({"layers": 3}, "layers=3 chooses none of the 2 layers"),
        ({"layers": 0}, "layers must be an integer of 1 or more"),
        ({"layers": "some"}, "layers must be 'all', 'auto', an integer n for every n-th, or a list"),
        ({"layers": [0], "memory_only_layers": [1]}, r"layers \[1\] have no attention here; valid are \[0\]"),
        ({"bidirectional": True}, "is causal: its memory needs bidirectional=False"),
        ({"bidirectional": True, "max_self_attn_length": 4}, "bounds causal attention"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings, message):
    model = build("llama")
    with pytest.raises(ValueError, match=message):
        attach_memory(model, MemoryConfig(**settings))
    assert not [n for n, _ in model.named_modules() if "liza" in n]


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
    with pytest.raises(ValueError, match="shows later tokens to earlier ones, which the window"):
        model(input_ids=torch.ones(1, 6, dtype=torch.long), attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))
