"""TpttModel generates through its base: at mu = 0 and without a window what the base generates, whatever the base has
of its own for generation."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.tiny import randomized, tiny_model
from tests.families.models import VOCABULARY, tokens
from tptt import TpttConfig, TpttModel

NEW = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def phi3():
    """Its factors change where a text grows over the length it was trained at, within the generation."""
    from transformers import Phi3Config

    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 32,
    }
    return Phi3Config(**SMALL, original_max_position_embeddings=32, rope_parameters=rope)


def minimax():
    """It has a cache of its own."""
    from transformers import MiniMaxConfig

    kinds = ["linear_attention", "full_attention"]
    return MiniMaxConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, layer_types=kinds)


def multimodal():
    from transformers import Gemma3Config

    text = SMALL | {"head_dim": 8, "sliding_window": 12, "model_type": "gemma3_text"}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=59,
        eoi_token_index=58,
    )


OWN = {"phi3 longrope": phi3, "minimax": minimax, "gemma3 with pictures": multimodal}
FAMILIES = ["openai-gpt", "cpmant", "gpt_neox", "opt", "bloom", "mpt", "qwen3_next", "falcon_h1", "deepseek_v3", "gpt2"]


def base_of(name):
    if name not in OWN:
        return tiny_model(name)
    torch.manual_seed(0)
    return randomized(AutoModelForCausalLM.from_config(OWN[name](), dtype=torch.float32))


@pytest.fixture(params=[*OWN, *FAMILIES])
def saved(request, tmp_path):
    base = base_of(request.param)
    base.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def converted(path, **settings):
    return TpttModel(TpttConfig(base_model_name=str(path), feature_width=16, mix_gate="none", **settings)).eval()


def test_as_the_base(saved):
    base, model = AutoModelForCausalLM.from_pretrained(saved).eval(), converted(saved, mag_weight=0.0)
    ids = tokens(2, 20)
    ids[:, -1] = 5
    for options in ({}, {"num_beams": 2}):
        assert torch.equal(model.generate(ids, **NEW, **options), base.generate(ids, **NEW, **options))


def test_with_a_memory_as_recomputed(saved, request):
    if "cpmant" in request.node.name:
        pytest.skip("the base itself generates something else with a cache than without")
    model, ids = converted(saved, mag_weight=0.5), tokens(1, 20)
    assert torch.equal(model.generate(ids, **NEW), model.generate(ids, use_cache=False, **NEW))


def test_the_models_own_generation_config_holds(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model, ids = converted(tmp_path / "base"), tokens(1, 9)
    model.generation_config = GenerationConfig(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert model.generate(ids).shape == (1, 12)
    model.generation_config.max_new_tokens = model.generation_config.min_new_tokens = 5
    assert model.generate(ids).shape == (1, 14)
