"""Bases with parts of their own: several modalities, buffers that no checkpoint holds, weights under other names."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DiffLlamaConfig, FalconH1Config, Gemma3Config, MixtralConfig

from benchmarks.tiny import tiny_config, tiny_model
from tests.families.models import assert_near, randomize
from tptt import TpttConfig, TpttModel
from tptt.convert.lora import lora_config
from tptt.hf import memory_layers

IDS = torch.randint(10, 60, (2, 14), generator=torch.Generator().manual_seed(1))
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def gemma3():
    text = SMALL | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=1,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )


def falcon_h1():
    mamba = {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    }
    return FalconH1Config(**SMALL, **mamba, head_dim=8, ssm_multipliers=[0.5, 0.7, 0.9, 1.1, 1.3])


BASES = {
    "gemma3": gemma3,  # a vision tower beside the language model
    "fuyu": lambda: tiny_config("fuyu"),
    "gemma4_unified": lambda: tiny_config("gemma4_unified"),
    "falcon_h1": falcon_h1,  # a buffer made of the configuration
    "diffllama": lambda: DiffLlamaConfig(**SMALL),
    "mixtral": lambda: MixtralConfig(**SMALL, num_local_experts=4),  # experts under other names in checkpoints
}


def logits(model, **inputs):
    with torch.no_grad():
        return model.eval()(**({"input_ids": IDS} | inputs), use_cache=False).logits


@pytest.fixture(params=list(BASES))
def base(request, tmp_path):
    torch.manual_seed(0)
    model = randomize(AutoModelForCausalLM.from_config(BASES[request.param]()))
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("way", ["adapter", "full", "merged"])
def test_every_base_comes_back(base, way, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(base)
    lora = None if way == "full" else lora_config(plain)
    model = TpttModel(TpttConfig(base_model_name=str(base), lora_config=lora, feature_width=16, mag_weight=0.0))
    assert_near(logits(model), logits(plain), 1e-6)
    model = TpttModel(TpttConfig(base_model_name=str(base), lora_config=lora, feature_width=16))
    randomize(model)
    if way == "merged":
        model.merge_and_unload()
    want = logits(model)
    for place in ("one", "two"):
        model.save_pretrained(tmp_path / place)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / place)
        assert_near(logits(model), want, 1e-5)
        assert type(model.inner) is type(plain)
    for (name, here), (_, there) in zip(model.inner.named_buffers(), plain.named_buffers(), strict=False):
        if ".liza." not in name:
            assert torch.equal(here, there), name


@pytest.mark.parametrize("base", ["gemma3", "fuyu", "gemma4_unified"], indirect=True)
def test_the_language_part_of_a_multimodal_base(base):
    model = TpttModel(TpttConfig(base_model_name=str(base), feature_width=16, max_self_attn_length=4))
    assert model.config.vocab_size == model.config.get_text_config().vocab_size == 61
    assert model.config.hidden_size == 32 and len(memory_layers(model)) == model.config.num_hidden_layers
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(model.generate(IDS, **options), model.generate(IDS, **options, use_cache=False))


@pytest.mark.parametrize("base", ["gemma3"], indirect=True)
def test_pictures_reach_the_base(base, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    torch.nn.init.normal_(plain.model.multi_modal_projector.mm_input_projection_weight)  # else pictures are zeros
    plain.save_pretrained(base)
    picture = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[10, 6, 5, 7, 11, 12, 13]])
    inputs = {"input_ids": ids, "pixel_values": picture, "token_type_ids": (ids == 5).long()}
    model = TpttModel(TpttConfig(base_model_name=str(base), feature_width=16, mag_weight=0.0))
    assert_near(logits(model, **inputs), logits(plain, **inputs), 1e-6)
    assert not torch.allclose(logits(model, **inputs | {"pixel_values": -picture}), logits(model, **inputs))
    model = randomize(TpttModel(TpttConfig(base_model_name=str(base), feature_width=16)))
    model.save_pretrained(tmp_path / "out")
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "out"), **inputs), logits(model, **inputs), 1e-5)


@pytest.mark.parametrize("base", ["gemma3"], indirect=True)
@pytest.mark.parametrize("lora", [True, False])
def test_a_multimodal_base_with_more_words(base, lora, tmp_path):
    settings = lora_config(AutoModelForCausalLM.from_pretrained(base)) if lora else None
    model = randomize(TpttModel(TpttConfig(base_model_name=str(base), lora_config=settings, feature_width=16)))
    model.resize_token_embeddings(70)
    ids = torch.tensor([[65, 66, 15, 16]])
    model.save_pretrained(tmp_path / "out")
    again = TpttModel.from_pretrained(tmp_path / "out")
    assert again.config.vocab_size == 70 and torch.equal(logits(again, input_ids=ids), logits(model, input_ids=ids))


# ---- dtype and attention implementation, by every road ------------------------------------------------------------


@pytest.fixture
def llama(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture(params=["adapter", "full"])
def checkpoint(request, llama, tmp_path):
    lora = lora_config(AutoModelForCausalLM.from_pretrained(llama)) if request.param == "adapter" else None
    TpttModel(TpttConfig(base_model_name=str(llama), lora_config=lora, feature_width=16)).save_pretrained(
        tmp_path / "out"
    )
    return tmp_path / "out"


def states(model):
    """What it says, and what its base does."""
    says, base = model.config, model.inner
    assert says.text_config is base.config and says.dtype in (None, model.dtype)
    assert says._attn_implementation == base.config._attn_implementation
    attentions = model(input_ids=IDS, use_cache=False, output_attentions=True).attentions
    assert bool(attentions) == (base.config._attn_implementation == "eager")
    return base.dtype, base.config._attn_implementation


ROADS = {
    "model": lambda base, place, **o: TpttModel(TpttConfig(base_model_name=str(base), feature_width=16), **o),
    "model's configuration": lambda base, place, **o: TpttModel(
        TpttConfig(base_model_name=str(base), feature_width=16, **o)
    ),
    "its from_pretrained": lambda base, place, **o: TpttModel.from_pretrained(place, **o),
    "Auto": lambda base, place, **o: AutoModelForCausalLM.from_pretrained(place, **o),
    "a configuration given to it": lambda base, place, **o: TpttModel.from_pretrained(
        place,
        config=TpttConfig.from_pretrained(place, **{k: v for k, v in o.items() if k == "attn_implementation"}),
        **{k: v for k, v in o.items() if k != "attn_implementation"},
    ),
    "a configuration given to Auto": lambda base, place, **o: AutoModelForCausalLM.from_pretrained(
        place,
        config=TpttConfig.from_pretrained(place, **{k: v for k, v in o.items() if k == "attn_implementation"}),
        **{k: v for k, v in o.items() if k != "attn_implementation"},
    ),
}


@pytest.mark.parametrize("road", list(ROADS))
def test_every_road(road, llama, checkpoint):
    load = ROADS[road]
    assert states(load(llama, checkpoint)) == (torch.float32, "sdpa")
    assert states(load(llama, checkpoint, attn_implementation="eager")) == (torch.float32, "eager")
    for name in ("dtype", "torch_dtype"):
        for dtype in (torch.bfloat16, "bfloat16"):
            assert states(load(llama, checkpoint, **{name: dtype}))[0] == torch.bfloat16
    assert states(load(llama, checkpoint, dtype=torch.float16, attn_implementation="eager")) == (torch.float16, "eager")


def test_auto_from_config(llama):
    config = TpttConfig(base_model_name=str(llama), feature_width=16)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    assert states(model) == (torch.bfloat16, "eager")
    assert states(AutoModelForCausalLM.from_config(config)) == (torch.float32, "sdpa")
    given = TpttConfig(base_model_name=str(llama), feature_width=16, attn_implementation="eager", dtype="bfloat16")
    assert states(AutoModelForCausalLM.from_config(given)) == (torch.bfloat16, "eager")


def test_what_is_no_option_is_named(llama, checkpoint):
    for road in ("model", "its from_pretrained", "Auto"):
        with pytest.raises((TypeError, ValueError), match="attn_implementaton"):
            ROADS[road](llama, checkpoint, attn_implementaton="eager")


def test_a_state_dict_beside_a_name_is_refused(checkpoint):
    with pytest.raises(ValueError, match="state_dict cannot be given with a checkpoint's name"):
        TpttModel.from_pretrained(checkpoint, state_dict={})


def test_a_configuration_of_another_model_is_refused(llama, checkpoint):
    with pytest.raises(ValueError, match="config must be a TpttConfig or its folder, got a LlamaConfig"):
        TpttModel.from_pretrained(checkpoint, config=AutoModelForCausalLM.from_pretrained(llama).config)
