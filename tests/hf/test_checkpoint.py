"""Checks 6 and 8 of INTEGRATION.md: save, load, merge, double round trip, hub-style load in a fresh process."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, pipeline

from tests.families.models import assert_near, randomize, tokens
from tptt import TpttConfig, TpttModel, TpttPipeline, set_mag_weight

FRESH = """
import sys, torch
assert "tptt" not in sys.modules
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.load(sys.argv[2])
new = model.generate(ids, do_sample=False, max_new_tokens=6, attention_mask=torch.ones_like(ids))
torch.save({"logits": model(input_ids=ids).logits.detach(), "new": new}, sys.argv[3])
model.save_pretrained(sys.argv[4])
"""


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_adapter_round_trip_is_small_and_exact(config, tmp_path):
    model, ids = randomize(TpttModel(config(max_self_attn_length=6))), tokens(2, 20)
    model.save_pretrained(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names and all(".liza." in n or "lora_" in n for n in names)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    for load in (TpttModel, AutoModelForCausalLM):
        assert torch.equal(logits(load.from_pretrained(tmp_path / "out"), ids), logits(model, ids))
    assert AutoConfig.from_pretrained(tmp_path / "out").max_self_attn_length == 6


def test_fresh_process_and_double_round_trip(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # or else `import torch` would make the type known
    model, ids = randomize(TpttModel(config(max_self_attn_length=6, mag_weight=0.3))).eval(), tokens(1, 20)
    torch.save(ids, tmp_path / "ids")
    want = model.generate(ids, do_sample=False, max_new_tokens=6, attention_mask=torch.ones_like(ids))
    model.save_pretrained(tmp_path / "0")
    for i in range(2):
        command = [sys.executable, "-c", FRESH, *(str(tmp_path / n) for n in (str(i), "ids", "result", str(i + 1)))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        result = torch.load(tmp_path / "result")
        assert_near(result["logits"], logits(model, ids), 1e-6)
        assert torch.equal(result["new"], want)
        saved = json.loads((tmp_path / str(i + 1) / "config.json").read_text())
        assert saved["auto_map"]["AutoModelForCausalLM"] == "modeling_tptt.TpttModel"


def test_merge_and_full_save(config, base, tmp_path):
    model, ids = randomize(TpttModel(config())), tokens(2, 20)
    want = logits(model, ids)
    tied = model.config.text_config.tie_word_embeddings
    model.merge_and_unload()
    assert_near(logits(model, ids), want)
    model.save_pretrained(tmp_path / "full")
    base.rename(tmp_path / "gone")  # self-contained: the base is not needed
    again = TpttModel.from_pretrained(tmp_path / "full")
    assert_near(logits(again, ids), want)
    shared = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert shared is bool(tied)


@pytest.mark.parametrize("lora", [True, False])
def test_resized_embeddings_come_back(config, tmp_path, lora):
    model, ids = randomize(TpttModel(config(lora, feature_width=16))), torch.tensor([[65, 66, 5, 6]])
    model.resize_token_embeddings(70)
    tied = bool(model.config.text_config.tie_word_embeddings)
    for place in ("out", "again"):
        model.save_pretrained(tmp_path / place)
        again = TpttModel.from_pretrained(tmp_path / place)
        assert again.config.vocab_size == again.config.text_config.vocab_size == 70
        assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) is tied
        assert torch.equal(logits(again, ids), logits(model, ids))
        model = again


@pytest.mark.parametrize("options", [{"max_shard_size": "5KB"}, {"variant": "fp16"}])
def test_an_adapter_saved_in_other_ways(config, tmp_path, options):
    model, ids = randomize(TpttModel(config(feature_width=16))), tokens(1, 10)
    model.save_pretrained(tmp_path / "out", **options)
    options.pop("max_shard_size", None)
    for load in (TpttModel, AutoModelForCausalLM):
        assert torch.equal(logits(load.from_pretrained(tmp_path / "out", **options), ids), logits(model, ids))


def test_each_save_replaces_the_one_before_it(config, tmp_path):
    """One file and an index of several lie under different names: what is read is what was saved last."""
    model, ids = randomize(TpttModel(config(feature_width=16))), tokens(1, 10)
    adapter, merged = copy.deepcopy(model), model.merge_and_unload()
    for last, options in ((adapter, {}), (merged, {"max_shard_size": "20KB"}), (merged, {}), (adapter, {})):
        last.save_pretrained(tmp_path / "out", **options)
        again = TpttModel.from_pretrained(tmp_path / "out")
        assert_near(logits(again, ids), logits(last, ids), 1e-6)
        weights = {p.name.split("-")[0] for p in (tmp_path / "out").glob("model[.-]*")}
        assert weights == ({"model", "model.safetensors.index.json"} if options else {"model.safetensors"})


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, that this is the second time
def test_merging_a_peft_model_around_it_merges_its_lora_as_well(config, tmp_path):
    model, ids = randomize(TpttModel(config(feature_width=16))), tokens(1, 10)
    outer = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["down_proj"]))
    randomize(outer)
    want, merged = logits(outer, ids), outer.merge_and_unload()
    merged.save_pretrained(tmp_path / "out")
    assert merged.config.weights_format == "full" and merged.config.lora_config is None
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "out"), ids), want)


@pytest.mark.parametrize("lora", [True, False])
def test_how_it_generates_comes_back(config, tmp_path, lora):
    model = TpttModel(config(lora, feature_width=16))
    model.generation_config.max_new_tokens, model.generation_config.repetition_penalty = 7, 1.5
    model.save_pretrained(tmp_path)
    for load in (TpttModel, AutoModelForCausalLM):
        found = load.from_pretrained(tmp_path).generation_config
        assert (found.max_new_tokens, found.repetition_penalty) == (7, 1.5)


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize(
    "options", [{}, {"max_shard_size": "20KB"}, {"variant": "fp16"}, {"max_shard_size": "20KB", "variant": "fp16"}]
)
def test_a_full_checkpoint_in_other_ways(config, tmp_path, options):
    model, ids = randomize(TpttModel(config(False, feature_width=16))), tokens(1, 10)
    model.save_pretrained(tmp_path / "in" / "it", **options)
    options.pop("max_shard_size", None)
    for load in (TpttModel, AutoModelForCausalLM):
        again = load.from_pretrained(tmp_path / "in", subfolder="it", **options)
        assert torch.equal(logits(again, ids), logits(model, ids))
    (tmp_path / "in" / "it" / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(OSError, match="holds no config.json: it is no checkpoint"):
        TpttModel.from_pretrained(tmp_path / "in" / "it", **options)


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_layers_are_saved_as_the_layers_that_they_are(config, tmp_path, lora):
    model, ids = randomize(TpttModel(config(lora, feature_width=16))), tokens(1, 10)
    want = logits(model, ids)
    layers = model.get_decoder().layers
    layers[1] = torch.compile(layers[1])
    layers[0].self_attn.q_proj = torch.compile(layers[0].self_attn.q_proj)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "_orig_mod" not in " ".join(file.keys())
    assert torch.equal(logits(TpttModel.from_pretrained(tmp_path), ids), want)


def test_a_checkpoint_without_weights(config, tmp_path):
    TpttModel(config(feature_width=16)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        TpttModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["llama"])
def test_a_converted_model_is_no_base(config, tmp_path):
    TpttModel(config(feature_width=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a converted model already.*TpttModel\.from_pretrained"):
        TpttConfig(base_model_name=tmp_path)


def test_a_moved_base_is_named_and_can_be_given(config, base, tmp_path):
    model, ids = randomize(TpttModel(config())), tokens(1, 10)
    model.save_pretrained(tmp_path / "out")
    base.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="base_model_name=NEW_PLACE"):
        TpttModel.from_pretrained(tmp_path / "out")
    again = TpttModel.from_pretrained(tmp_path / "out", base_model_name=str(tmp_path / "moved"))
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_lora_before_or_after_attaching(config, tmp_path):
    from tptt import MemoryConfig, attach_memory

    settings, ids = config(), tokens(2, 20)
    model = randomize(TpttModel(settings))
    other = AutoModelForCausalLM.from_pretrained(settings.base_model_name)
    attach_memory(other, MemoryConfig())
    other = get_peft_model(other, PeftConfig.from_peft_type(**settings.lora_config))
    result = other.load_state_dict(model.backbone.state_dict(), strict=False)
    assert not result.missing_keys and not result.unexpected_keys
    assert_near(logits(other, ids), logits(model, ids), 1e-6)


def test_a_checkpoint_that_does_not_fit(config, tmp_path):
    model = TpttModel(config())
    model.save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(saved | {"feature_map": "silu"}))
    with pytest.raises(RuntimeError, match="does not fit"):
        TpttModel.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps(saved | {"tptt_version": "7.1.0"}))
    with pytest.raises(ValueError, match=r"made by tptt 7\.1\.0"):
        TpttModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("load", [TpttModel, AutoModelForCausalLM])
@pytest.mark.parametrize("lora", [True, False])
def test_settings_override_the_saved_ones(config, tmp_path, lora, load):
    """Each reaches the model, or is refused where the weights do not fit it: nothing is left fresh or dropped."""
    model, ids = randomize(TpttModel(config(lora, mag_weight=0.5, mix_gate="none", feature_width=16))), tokens(1, 12)
    model.save_pretrained(tmp_path / "out")
    again = load.from_pretrained(tmp_path / "out", mag_weight=0.25)
    set_mag_weight(model, 0.25)
    assert again.config.mag_weight == 0.25 and torch.equal(logits(again, ids), logits(model, ids))
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load.from_pretrained(tmp_path / "again"), ids), logits(model, ids))
    for change in ({"operator": "kda"}, {"layers": (1,)}, {"write_gate": "constant"}, {"feature_map": "silu"}):
        with pytest.raises(RuntimeError, match="does not fit"):
            load.from_pretrained(tmp_path / "out", **change)


@pytest.mark.parametrize("family", ["llama-tied", "llama"])
@pytest.mark.parametrize("way", ["adapter", "full", "merged"])
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [5, 6]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of tied weights
def test_embeddings_in_the_adapter(config, tmp_path, settings, way):
    given = config(feature_width=16, weights_format="adapter" if way == "merged" else way)
    given.lora_config |= settings
    model, ids = randomize(TpttModel(given)), tokens(1, 12)
    want = logits(model, ids)
    if way == "merged":
        assert_near(logits(model.merge_and_unload(), ids), want)
    model.save_pretrained(tmp_path / "out")
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "out"), ids), want)


def test_pipelines_and_generate_agree(config, tokenizer):
    model = randomize(TpttModel(config(max_self_attn_length=6))).eval()
    text, options = "w5 w9 w11 w5 w9 w30 w31 w8", {"max_new_tokens": 9, "do_sample": False}
    ids = tokenizer(text, return_tensors="pt")
    want = model.generate(**ids, **options)[0].tolist()
    ours = TpttPipeline(model=model, tokenizer=tokenizer, device="cpu")(text, return_tensors=True, **options)
    stock = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    assert ours == stock(text, return_tensors=True, **options)
    assert ours[0]["generated_token_ids"] == want


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("lora", [True, False])
def test_a_base_with_code_of_its_own(config, base, tmp_path, lora):
    (base / "own.py").write_text(OWN_CODE)
    place, names = base / "config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    place.write_text(json.dumps(json.loads(place.read_text()) | {"model_type": "own_llama", "auto_map": names}))
    trust = {"trust_remote_code": True}
    model, ids = randomize(TpttModel(config(lora, feature_width=16, **trust), **trust)), tokens(1, 12)
    for out in ("out", "again"):
        model.save_pretrained(tmp_path / out)
        with pytest.raises(ValueError, match=r"'own_llama', which transformers does not know: trust_remote_code=True"):
            TpttModel.from_pretrained(tmp_path / out)
        for load in (TpttModel, AutoModelForCausalLM):
            again = load.from_pretrained(tmp_path / out, **trust)
            assert type(again.inner).__name__ == "OwnModel" and again.config.vocab_size == model.config.vocab_size
            assert torch.equal(logits(again, ids), logits(model, ids))
        model = again


@pytest.mark.parametrize("family", ["llama"])
def test_dtype_auto_is_what_was_trained(config, tmp_path):
    TpttModel(config(feature_width=16), dtype=torch.bfloat16).save_pretrained(tmp_path / "out")
    for load in (TpttModel, AutoModelForCausalLM):
        assert load.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["llama"])
def test_lora_that_moves_the_base_at_random_is_saved_with_it(config, tmp_path):
    given = config(feature_width=16)
    given.lora_config["init_lora_weights"] = "pissa_niter_4"
    model, ids = randomize(TpttModel(given)), tokens(1, 12)
    model.save_pretrained(tmp_path / "out")
    assert_near(logits(TpttModel.from_pretrained(tmp_path / "out"), ids), logits(model, ids))


@pytest.mark.parametrize("family", ["llama"])
def test_the_name_under_which_trl_finds_a_reference(config, base, tmp_path):
    model = TpttModel(config(feature_width=16))
    assert model.config.name_or_path == str(base)
    model.save_pretrained(tmp_path / "out")
    assert TpttModel.from_pretrained(tmp_path / "out").config.name_or_path == str(tmp_path / "out")


@pytest.mark.parametrize("family", ["llama"])
@pytest.mark.parametrize("lora", [True, False])
def test_only_the_main_process_writes(config, tmp_path, lora):
    model = TpttModel(config(lora, feature_width=16))
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "out", True)
    written = {"config.json", "generation_config.json", "model.safetensors", "modeling_tptt.py"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == written


@pytest.mark.parametrize("family", ["llama"])
def test_an_auto_class_changes_nothing_for_other_models(config, tmp_path):
    model = TpttModel(config(feature_width=16))
    for kind in (TpttModel, TpttConfig):
        kind.register_for_auto_class("AutoModelForCausalLM")
        assert not kind.__dict__.get("_auto_class")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"]["AutoConfig"] == "modeling_tptt.TpttConfig"
    assert sorted(p.name for p in tmp_path.glob("*.py")) == ["modeling_tptt.py"]


def test_the_shim_refuses_another_tptt(config, tmp_path):
    TpttModel(config()).save_pretrained(tmp_path / "out")
    (tmp_path / "fake" / "tptt").mkdir(parents=True)
    (tmp_path / "fake" / "tptt" / "__init__.py").write_text("__version__ = '0.12.1'\nTpttConfig = TpttModel = None\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path / 'fake')!r}, {str(tmp_path / 'out')!r}]; import modeling_tptt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "another, older project" in done.stderr and "0.12.1" in done.stderr


def test_the_config_survives_json(config):
    settings = config(max_self_attn_length=9, mag_weight=0.25)
    again = TpttConfig.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again.memory_config() == settings.memory_config()
    assert again.lora_config == settings.lora_config
    lora = PeftConfig.from_peft_type(**settings.lora_config)
    assert TpttConfig(lora_config=lora).lora_config == settings.lora_config
