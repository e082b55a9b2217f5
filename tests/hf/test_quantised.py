"""A base in 4 or 8 bits (QLoRA). What needs the extra `quant` runs with `make test-slow`, which installs it."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from tests.families.models import assert_near, randomize, tokens
from tptt import TpttConfig, TpttModel
from tptt.assets import BASE

LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
IDS = torch.randint(5, 2000, (2, 40), generator=torch.Generator().manual_seed(0))
WITH_BITSANDBYTES = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # on a CPU it warns
KINDS = {
    "4-bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "8-bit": {"load_in_8bit": True},
}
LAYERS = {"4-bit": "Linear4bit", "8-bit": "Linear8bitLt"}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def layer_types(model):
    return {type(m).__name__ for m in model.modules()}


def settings(**more):
    return TpttConfig(
        base_model_name=str(BASE), max_self_attn_length=16, feature_width=32, **({"lora_config": LORA} | more)
    )


@pytest.fixture(params=list(KINDS))
def kind(request):
    pytest.importorskip("bitsandbytes")
    return request.param


@pytest.fixture
def options(kind):
    return {"quantization_config": BitsAndBytesConfig(**KINDS[kind]), "device_map": "cpu"}


@pytest.mark.parametrize("kind", ["4-bit"], indirect=True)
class TestBitsandbytes:
    pytestmark = WITH_BITSANDBYTES

    def test_memory_and_lora_train(self, options, tmp_path):
        model = TpttModel(settings(), **options)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        assert any(".liza." in n for n in before) and any("lora_" in n for n in before)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=12,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=2,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": r, "labels": r} for r in IDS])
        trainer.train()
        losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
        assert losses[-1] < 0.9 * losses[0]
        assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_adapter(kind, options, tmp_path):
    """The next user chooses how the base is quantised, or not."""
    model = randomize(TpttModel(settings(), **options))
    assert LAYERS[kind] in layer_types(model)
    want = logits(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    for load in (TpttModel, AutoModelForCausalLM):
        assert torch.equal(logits(load.from_pretrained(tmp_path, **options)), want)
    assert torch.equal(logits(model), want)
    assert LAYERS[kind] not in layer_types(TpttModel.from_pretrained(tmp_path))
    if kind == "8-bit":  # it rounds a token by the others of its call
        return
    generate = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    with_cache = model.generate(IDS[:1, :12], **generate)
    assert torch.equal(with_cache, model.generate(IDS[:1, :12], **generate, use_cache=False))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["merged", "full", "no LoRA"])
def test_a_self_contained_checkpoint(kind, options, way, dtype, tmp_path):
    more = {"lora_config": None} if way == "no LoRA" else {"weights_format": "full"}
    model = randomize(TpttModel(settings(**more), dtype=dtype, **options))
    if way == "merged":
        model.merge_and_unload()
    want = logits(model)
    for place in ("one", "two"):
        model.save_pretrained(tmp_path / place)
        saved = json.loads((tmp_path / place / "config.json").read_text())
        assert saved["text_config"]["quantization_config"]["quant_method"] == "bitsandbytes"
        for load in (TpttModel, AutoModelForCausalLM):
            for chosen in ({}, options):
                again = load.from_pretrained(tmp_path / place, **{"device_map": "cpu"} | chosen)
                assert LAYERS[kind] in layer_types(again)
                assert_near(logits(again), want, 1e-5)
        assert_near(logits(model), want, 1e-5)  # saving has left it as it was
        model = again


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_base_that_lies_quantised(kind, options, tmp_path):
    AutoModelForCausalLM.from_pretrained(BASE, **options).save_pretrained(tmp_path / "base")
    config = settings()
    config = TpttConfig(**{**config.to_dict(), "base_model_name": str(tmp_path / "base"), "text_config": None})
    model = randomize(TpttModel(config, device_map="cpu"))
    assert LAYERS[kind] in layer_types(model)
    model.save_pretrained(tmp_path / "out")
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "out", device_map="cpu")), logits(model), 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_second_adapter(options, tmp_path):
    model = TpttModel(settings(), **options)
    model.backbone.add_adapter("task", LoraConfig(**{k: v for k, v in LORA.items() if k != "peft_type"}))
    model.backbone.set_adapter("task")
    randomize(model).save_pretrained(tmp_path)
    assert_near(logits(TpttModel.from_pretrained(tmp_path, **options)), logits(model), 1e-5)


@pytest.fixture
def family():
    return "llama"


def pretend(model, method):
    """As if transformers had quantised the base of ``model`` by ``method``."""
    model.inner.is_quantized, model.inner.quantization_method = True, method
    return model


def test_weights_in_an_unknown_form_are_not_saved(config, tmp_path):
    """Said before LoRA is folded into them, and before anything is written."""
    message = "weights quantised by gptq are not known to come back from it; known is bitsandbytes"
    model = pretend(randomize(TpttModel(config(feature_width=16))), "gptq")
    ids = tokens(1, 8)
    want = model(ids).logits
    with pytest.raises(ValueError, match=f"LoRA cannot be folded into this base: {message}"):
        model.merge_and_unload()
    assert torch.equal(model(ids).logits, want)
    model.save_pretrained(tmp_path / "adapter")
    model.config.weights_format = "full"
    for refused in (model, pretend(TpttModel(config(False, feature_width=16)), "gptq")):
        with pytest.raises(ValueError, match=f"{message}: keep LoRA unmerged"):
            refused.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lora_is_not_folded_into_quantised_weights_unasked(config):
    from peft import get_peft_model

    model = pretend(TpttModel(config(feature_width=16)), "bitsandbytes")
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="folding them into quantised weights loses precision"),
    ):
        warnings.simplefilter("ignore", UserWarning)  # peft's, that this is the second time
        get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert model.config.lora_config is not None
