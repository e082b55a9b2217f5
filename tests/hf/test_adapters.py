"""Every peft configuration that a model takes trains, generates, saves, loads and merges; the others are refused
first."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.families.models import assert_near, tokens
from tptt import TpttConfig, TpttModel
from tptt.hf.adapters import ONE_AT_A_TIME, PEFT_TYPES

IDS = tokens(2, 20)
ATTENTION = ["q_proj", "v_proj", "o_proj"]
SETTINGS = {
    "LORA": {"r": 4},
    "ADALORA": {"total_step": 100},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 30},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": sorted(set(IDS.flatten().tolist())), "target_modules": ["embed_tokens"]},
    "VBLORA": {"r": 2, "num_vectors": 16, "vector_length": 8, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 30},
}
TOLERANCE = 1e-5


@pytest.fixture
def family():
    return "llama"


@pytest.fixture(autouse=True)
def quiet():
    """peft warns of things that this file does on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def settings_of(kind, **more):
    return {"peft_type": kind, "task_type": "CAUSAL_LM", "target_modules": ATTENTION} | SETTINGS.get(kind, {}) | more


@pytest.fixture
def make(base):
    """make(settings, **options) -> a model whose adapter and memory are off their start."""

    def make(settings, **options):
        options = {"feature_width": 16, "max_self_attn_length": 8} | options
        return moved(TpttModel(TpttConfig(base_model_name=str(base), lora_config=settings, **options)))

    return make


def moved(model, seed=0):
    """``model`` as if it had been trained for a while."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def comes_back(model, place):
    """Assert that what ``model`` saves loads again as it was, twice; returns the model loaded."""
    want = logits(model)
    model.save_pretrained(place)
    once = AutoModelForCausalLM.from_pretrained(place)
    assert_near(logits(once), want, TOLERANCE)
    once.save_pretrained(place)
    again = TpttModel.from_pretrained(place)
    assert_near(logits(again), want, TOLERANCE)
    return again


@pytest.mark.parametrize("kind", PEFT_TYPES)
def test_every_method_to_the_end(make, kind, tmp_path):
    model = make(settings_of(kind))
    model.train()(IDS, labels=IDS).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and ".liza." not in n}
    assert trained and any(p.grad is not None and p.grad.any() for p in trained.values())
    model.zero_grad()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    with_cache = model.eval().generate(IDS, **options)
    assert torch.equal(with_cache, model.generate(IDS, **options, use_cache=False))
    again = comes_back(model, tmp_path / "adapter")
    assert again.config.weights_format == "adapter" and again.config.lora_config["peft_type"] == kind
    comes_back(make(settings_of(kind), weights_format="full"), tmp_path / "full")
    want = logits(model)
    assert_near(logits(model.merge_and_unload()), want, 1e-4)
    assert comes_back(model, tmp_path / "merged").config.lora_config is None


@pytest.mark.parametrize("kind", [k for k in PEFT_TYPES if k not in ONE_AT_A_TIME])
def test_every_method_with_a_second_adapter(make, kind, tmp_path):
    model = make(settings_of(kind))
    first = logits(model)
    model.backbone.add_adapter("task", PeftConfig.from_peft_type(**settings_of(kind)))
    model.backbone.set_adapter("task")
    again = comes_back(moved(model, 1), tmp_path)
    assert again.active_adapters() == ["task"] and list(again.config.lora_config) == ["default", "task"]
    assert not torch.allclose(logits(again), first, atol=1e-3)


@pytest.mark.parametrize("kind", ONE_AT_A_TIME)
def test_one_adapter_at_a_time(make, kind):
    model = make(settings_of(kind))
    before = model.own_shapes().keys()
    with pytest.raises(ValueError, match=f"one adapter of peft_type '{kind}'|only 1 trainable adapter"):
        model.backbone.add_adapter("task", PeftConfig.from_peft_type(**settings_of(kind)))
    assert model.own_shapes().keys() == before and list(model.backbone.peft_config) == ["default"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
            "'PROMPT_TUNING' does not work.*valid are LORA, ",
        ),
        (
            {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4},
            "'PREFIX_TUNING' does not work",
        ),
        ({"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 1}, "'ADAPTION_PROMPT' does not work"),
        ({"peft_type": "LILA"}, "'LILA' does not work beside a memory"),
        (settings_of("LORA", task_type="SEQ_CLS"), "task_type 'SEQ_CLS' is not for a causal language model; valid are"),
        (settings_of("LORA", alora_invocation_tokens=[5]), "alora_invocation_tokens .* leave it out"),
        (settings_of("LORA", rank=4), "lora_config: unknown rank; settings of LORA are .*lora_alpha, .* r, "),
        ({"a": settings_of("LORA"), "b": settings_of("PREFIX_TUNING")}, "adapter 'b': peft_type 'PREFIX_TUNING'"),
        ({"a": {"r": 4}}, "lora_config must be a peft configuration"),
        ({}, "lora_config must be a peft configuration"),
    ],
    ids=str,
)
def test_what_is_refused_with_the_configuration(base, settings, message):
    """Before a base is loaded."""
    with pytest.raises(ValueError, match=message):
        TpttConfig(base_model_name=str(base), lora_config=settings)


def test_active_adapters_must_be_there(base):
    with pytest.raises(ValueError, match=r"active_adapters: unknown \['task'\]; lora_config has \['default'\]"):
        TpttConfig(base_model_name=str(base), lora_config=settings_of("LORA"), active_adapters=["task"])


def test_a_name_that_the_base_uses(make):
    with pytest.raises(ValueError, match="adapter 'layers': the base has a part of that name"):
        make({"layers": settings_of("LORA")})
    model = make(settings_of("LORA"))
    with pytest.raises(ValueError, match="adapter 'model': the base has a part of that name"):
        model.backbone.add_adapter("model", LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize("format", ["adapter", "full"])
@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 6}, "alpha_pattern": {"o_proj": 1}},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*_proj"},
        {"layers_to_transform": [1], "exclude_modules": ["o_proj"]},
        {"target_modules": [], "target_parameters": ["q_proj.weight"]},
        {"bias": "lora_only"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_2"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "mica"},
        {"modules_to_save": ["lm_head", "input_layernorm"]},
        {"fan_in_fan_out": False, "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_every_kind_of_lora(make, more, format, tmp_path):
    model = make(settings_of("LORA", **more), weights_format=format)
    comes_back(model, tmp_path / "saved")
    want = logits(model)
    assert_near(logits(model.merge_and_unload()), want, 1e-4)
    comes_back(model, tmp_path / "merged")


def test_several_adapters_given_with_the_configuration(make, tmp_path):
    adapters = {"one": settings_of("LORA"), "two": LoraConfig(r=2, target_modules=["k_proj"], task_type="CAUSAL_LM")}
    model = make(adapters, active_adapters=["two", "one"])
    again = comes_back(model, tmp_path)
    assert again.active_adapters() == ["two", "one"] and list(again.backbone.peft_config) == ["one", "two"]
    assert again.backbone.peft_config["two"].r == 2
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in again.named_parameters() if p.requires_grad
    }


def test_an_adapter_with_a_copy_of_the_memory(make, tmp_path):
    model = make(settings_of("LORA", modules_to_save=["liza"]))
    trained = {n for n, p in model.named_parameters() if p.requires_grad and ".liza." in n}
    assert trained and all(".liza.modules_to_save.default." in n for n in trained)
    with_copy = logits(model)
    again = comes_back(model, tmp_path)
    with model.backbone.disable_adapter(), again.backbone.disable_adapter():
        assert_near(logits(again), logits(model), TOLERANCE)
        assert not torch.allclose(logits(model), with_copy, atol=1e-3)


def add(model, name, **more):
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | more
    model.backbone.add_adapter(name, LoraConfig(**settings))
    return model


def renamed(model):
    add(model, "task").backbone.set_adapter("task")
    model.backbone.delete_adapter("default")


def both_at_work(model):
    add(model, "task").backbone.base_model.set_adapter(["default", "task"])


def second_deleted(model):
    add(model, "task").backbone.delete_adapter("task")


def first_anew(model):
    add(model, "task").backbone.delete_adapter("default")
    add(model, "default", r=2, target_modules=["v_proj"]).backbone.set_adapter("default")


def switched_off(model):
    model.backbone.base_model.disable_adapter_layers()


def folded_for_now(model):
    model.backbone.merge_adapter()


def weighted(combination):
    def change(model):
        add(model, "task", target_modules=ATTENTION)
        moved(model, 3)
        model.backbone.add_weighted_adapter(["default", "task"], [0.7, 0.4], "both", combination_type=combination)
        model.backbone.set_adapter("both")

    return change


def copies(model):
    add(model, "task", modules_to_save=["lm_head"]).backbone.set_adapter("task")


def memory_copies(model):
    """The second adapter trains a memory of its own."""
    add(model, "task", modules_to_save=["liza"]).backbone.set_adapter("task")


def dora(model):
    add(model, "task", use_dora=True).backbone.set_adapter("task")


def all_linear(model):
    add(model, "task", target_modules="all-linear").backbone.set_adapter("task")


def residual(model):
    """Making the adapter has moved the base, and then it is gone."""
    add(model, "task", init_lora_weights="pissa").backbone.delete_adapter("task")


CHANGES = [
    renamed,
    both_at_work,
    second_deleted,
    first_anew,
    switched_off,
    folded_for_now,
    weighted("linear"),
    weighted("cat"),
    weighted("svd"),
    copies,
    memory_copies,
    dora,
    all_linear,
    residual,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__qualname__.split(".")[0])
def test_adapters_in_every_order(make, change, tmp_path):
    """Added, named, put to work, deleted and combined after the model was made."""
    model = make(settings_of("LORA"))
    change(model)
    if change is not folded_for_now and change is not switched_off:
        moved(model, 2)
    again = comes_back(model, tmp_path / "saved")
    assert sorted(again.active_adapters()) == sorted(model.active_adapters())
    want = logits(model)
    assert_near(logits(model.merge_and_unload()), want, 1e-4)
    comes_back(model, tmp_path / "merged")


def test_the_last_adapter_deleted(make, tmp_path):
    model = make(settings_of("LORA"))
    model.backbone.delete_adapter("default")
    model.save_pretrained(tmp_path)
    assert model.config.lora_config is None and model.config.weights_format == "full"
    comes_back(model, tmp_path)
    assert_near(logits(TpttModel.from_pretrained(tmp_path)), logits(model), TOLERANCE)


def test_adapters_taken_out(make, tmp_path):
    model = make(settings_of("LORA"))
    model.backbone.unload()
    assert comes_back(model, tmp_path).config.lora_config is None


def test_adapters_that_differ_from_layer_to_layer_are_not_saved(make, tmp_path):
    model = add(make(settings_of("LORA")), "task", target_modules=ATTENTION)
    model.inner.model.layers[0].self_attn.q_proj.set_adapter("task")
    with pytest.raises(ValueError, match="differ in which adapters are active"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_folded_in_for_now_are_not_saved_twice(make, tmp_path):
    model = make(settings_of("LORA"), weights_format="full")
    model.backbone.merge_adapter()
    with pytest.raises(ValueError, match=r"adapters \['default'\] are folded into the base for the time being"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.backbone.unmerge_adapter()
    comes_back(model, tmp_path / "out")


def test_weights_that_the_configuration_does_not_explain_are_not_saved(make, tmp_path):
    """Adapters that peft puts around the model are no part of it until they are folded in."""
    model = make(None)
    outer = moved(get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["down_proj"])))
    with pytest.raises(ValueError, match=r"holds 4 weights that its configuration does not explain.*down_proj.lora_A"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    comes_back(outer.merge_and_unload(), tmp_path / "out")


# ---- adapters around a converted model ----------------------------------------------------------------------------

SECOND = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("name", ["default", "second"])
def test_adapters_around_a_model_with_lora_fold_it_in(make, name, tmp_path):
    model = make(settings_of("LORA"))
    model.save_pretrained(tmp_path / "converted")
    want = logits(model)
    with pytest.warns(UserWarning, match=r"adapters \['default'\] of this converted model were folded into its base"):
        outer = get_peft_model(model, SECOND, adapter_name=name).eval()
    assert_near(logits(outer), want, TOLERANCE)
    assert list(outer.peft_config) == [name] and model.config.lora_config is None
    want = logits(moved(outer, 1))
    outer.save_pretrained(tmp_path / "around")
    place = tmp_path / "around" / ("" if name == "default" else name)
    other = PeftModel.from_pretrained(TpttModel.from_pretrained(tmp_path / "converted"), place, adapter_name=name)
    assert_near(logits(other), want, TOLERANCE)
    comes_back(outer.merge_and_unload(), tmp_path / "merged")
    assert_near(logits(model), want, 1e-4)


def test_adapters_around_a_model_are_not_replaced(make):
    outer = moved(get_peft_model(make(None), SECOND))
    want = logits(outer)
    with pytest.raises(ValueError, match=r"peft has put adapters around this converted model already"):
        get_peft_model(outer.base_model.model, SECOND)
    assert torch.equal(logits(outer), want)
    merged = outer.merge_and_unload()
    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(merged, LoraConfig(target_modules=["nowhere"]))
    again = get_peft_model(merged, SECOND).eval()
    assert_near(logits(again), want, 1e-4)


def test_idle_adapters_are_not_lost_to_adapters_around(make):
    model = add(make(settings_of("LORA")), "task")
    want = logits(model)
    with pytest.raises(ValueError, match=r"adapters \['task'\] are not at work"):
        get_peft_model(model, SECOND)
    assert torch.equal(logits(model), want)


@pytest.mark.parametrize("lora", [True, False])
def test_transformers_own_adapters_are_refused(make, lora):
    model = make(settings_of("LORA") if lora else None)
    want = logits(model)
    for call in (
        lambda: model.add_adapter(SECOND),
        lambda: model.load_adapter("somewhere"),
        lambda: model.set_adapter("default"),
        lambda: model.delete_adapter("default"),
        model.disable_adapters,
        model.enable_adapters,
    ):
        with pytest.raises(ValueError, match=r"model\.backbone has add_adapter\(name, config\)"):
            call()
    assert torch.equal(logits(model), want)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".liza." in n)
