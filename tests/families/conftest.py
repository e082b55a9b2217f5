import pytest

from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory

from .models import FAMILIES, build, randomize

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": None}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def attached(family):
    """make(attention="sdpa", **memory settings): a random model of the family with a memory."""

    def make(attention="sdpa", **settings):
        return randomize(attach_memory(build(family, attention), MemoryConfig(**settings)))

    return make


@pytest.fixture
def converted(family, tmp_path):
    """make(lora=True, **settings): a TpttModel on a saved random base of the family."""

    def make(lora=True, **settings):
        place = tmp_path / "base"
        if not place.exists():
            build(family).save_pretrained(place)
        targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "k_proj", "v_proj", "o_proj"]
        extra = {"fan_in_fan_out": True} if family == "gpt2" else {}
        config = TpttConfig(
            base_model_name=place, lora_config=LORA | {"target_modules": targets} | extra if lora else None, **settings
        )
        return randomize(TpttModel(config)).eval()

    return make
