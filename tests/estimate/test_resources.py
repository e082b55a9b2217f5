import json
from pathlib import Path

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.configs import CONFIGS, HEAD, with_comments
from benchmarks.tiny import tiny_config
from tptt import TpttModel, parameter_groups
from tptt.estimate.cache import cache_bytes
from tptt.estimate.fit import ways_to_fit
from tptt.estimate.hardware import GIB, HARDWARE, Hardware
from tptt.estimate.resources import Survey, budget
from tptt.evaluation.perplexity import next_token_losses
from tptt.run.base import config_from_file
from tptt.run.options import RunOptions
from tptt.run.run_file import load_run

FAMILIES = ("llama", "gemma3_text", "olmoe")
RUNS = sorted(CONFIGS.glob("*.yaml"))


def describe(config, folder: Path) -> Path:
    """The configuration as a file of configs/bases."""
    path = folder / "base.json"
    path.write_text(json.dumps({"_source": "a remark"} | config.to_dict()))
    return path


@pytest.fixture(params=FAMILIES)
def tiny(request, tmp_path):
    """Options with a small base that was saved, and their flags as a function of more."""
    config = tiny_config(request.param, max_position_embeddings=256)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    return RunOptions(str(tmp_path / "base"), base_config=str(describe(config, tmp_path))).changed(
        max_self_attn_length=8,
        seq_len=64,
        per_device_train_batch_size=3,
        tokens=3 * 64 * 10,
        lora_r=2,
        allocate_widths=False,
    )


def built(options: RunOptions) -> TpttModel:
    """The model that a run would train, with weights."""
    config = Survey(options.changed(base_config=None)).model.config
    config.base_model_name, config.text_config = options.base_model, None
    return TpttModel(config, dtype=torch.float32).train()


def test_parameters_are_those_of_the_model(tiny):
    model, found = built(tiny), Survey(tiny).parameters
    names = dict(model.named_parameters())
    assert found.total == sum(p.numel() for p in names.values())
    assert found.trained == sum(p.numel() for p in names.values() if p.requires_grad)
    assert found.lora == sum(p.numel() for n, p in names.items() if "lora_" in n)
    assert found.memory == sum(p.numel() for n, p in names.items() if ".liza." in n)
    whole = Survey(tiny.changed(lora_r=0)).parameters
    assert whole.lora == 0 and whole.trained == whole.total


def test_gradients_and_optimizer_states_are_those_of_a_step(tiny):
    model, plan = built(tiny), budget(tiny, "cpu")
    optimizer = torch.optim.AdamW(parameter_groups(model))
    ids = torch.randint(61, (3, 64))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = sum(x.nbytes for s in optimizer.state.values() for x in s.values() if x.ndim)
    assert plan.parts["AdamW states"] == states and plan.parts["gradients"] == gradients
    assert plan.parts["base weights"] == 4 * plan.parameters.base and plan.steps == 10


def test_activations_are_those_that_autograd_keeps(tiny, monkeypatch):
    monkeypatch.setattr("tptt.ops.native.unavailable", lambda: "off: a GPU has no C++ kernels")
    model, kept = built(tiny), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive = []

    def keep(x):
        alive.append(x)
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(input_ids=torch.randint(61, (3, 64)), use_cache=False)
    real = sum(size for place, size in kept.items() if place not in own)
    assert budget(tiny, "cpu").parts["activations"] == pytest.approx(real, rel=0.05)


def test_recomputed_activations_take_less(tiny):
    plain = budget(tiny, "cpu")
    less = budget(tiny.changed(gradient_checkpointing=True), "cpu")
    assert less.parts["activations"] < plain.parts["activations"]
    assert sum(less.operations) > sum(plain.operations)


def test_recomputing_needs_room_for_the_widest_memory(tiny):
    def activations(**options):
        return budget(tiny.changed(**options), "cpu").parts["activations"]

    assert activations(allocate_widths=True) == activations()
    less = {"gradient_checkpointing": True}
    assert activations(**less, allocate_widths=True) > activations(**less)
    for nothing in ({"max_self_attn_length": None}, {"feature_map": "silu"}, {"feature_width": [512, 1536]}):
        assert activations(**less, **nothing, allocate_widths=True) == activations(**less, **nothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_loss_are_what_the_loss_takes_at_its_peak(dtype, tmp_path):
    rows, length, words = 2, 64, 3000
    hidden = torch.randn(rows, length, words, dtype=dtype, requires_grad=True)
    labels = torch.randint(words, (rows, length))
    tracker = MemTracker()
    with tracker:
        logits = hidden * 1  # what the head puts out
        next_token_losses(logits, labels).sum().backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]  # without what was there before
    options = RunOptions(base_config=str(describe(tiny_config("llama", vocab_size=words), tmp_path)))
    options = options.changed(
        seq_len=length, per_device_train_batch_size=rows, bf16=False, dtype=str(dtype).removeprefix("torch.")
    )
    assert budget(options, "80gb").parts["logits and loss"] == pytest.approx(peak, rel=0.15)


def test_a_teacher_takes_memory_and_time(tiny):
    plain, distilled = budget(tiny, "80gb"), budget(tiny.changed(kl_weight=0.1), "80gb")
    aligned = budget(tiny.changed(kl_weight=0.1, attention_transfer_weight=0.1), "80gb")
    assert "teacher" not in plain.parts
    assert 0 < distilled.parts["teacher"] < aligned.parts["teacher"]
    assert sum(plain.operations) < sum(distilled.operations)


def test_far_weights_take_two_passes_over_text(tiny):
    plain, text, mixed = (
        budget(tiny.changed(max_self_attn_length=8, **x), "80gb")
        for x in ({}, {"long_context_weight": 1.0, "recall_share": 0.0}, {"long_context_weight": 1.0})
    )
    assert text.parts == plain.parts, "they are done with before the step's own logits are there"
    more = [sum(x.operations) - sum(plain.operations) for x in (text, mixed)]
    assert more[0] == pytest.approx(2 * more[1]) and more[0] > 0


@pytest.mark.parametrize("changes", [{}, {"memory_only_layers": [0]}, {"layers": [1]}, {"states": "kv_head"}])
def test_the_cache_is_that_of_the_model(tiny, changes):
    options = tiny.changed(**changes)
    model, tokens = built(options).eval(), 24
    base = AutoModelForCausalLM.from_pretrained(options.base_model, dtype=torch.float32).eval()
    held = []
    for one in (base, model):
        cache = DynamicCache(config=base.config)
        with torch.no_grad():
            for t in range(tokens):
                one(input_ids=torch.full((1, 1), t), past_key_values=cache, use_cache=True)
        parts = [x for layer in cache.layers for x in (layer.keys, layer.values, getattr(layer, "state", None))]
        held.append(sum(x.nbytes for x in parts if x is not None))
    assert cache_bytes(model, tokens, 4) == tuple(held)


def test_what_does_not_fit_names_the_keys_to_change(tiny, monkeypatch):
    def card(peak):
        monkeypatch.setitem(HARDWARE, "cpu", Hardware("a small one", int(peak * 12 / 11) + 12, {"float32": 1.0}, 0.5))

    survey = Survey(tiny)
    card(budget(tiny, "cpu", survey).peak)
    assert ways_to_fit(tiny, "cpu", survey) == {}
    card(budget(tiny.changed(gradient_checkpointing=True), "cpu", survey).peak)
    assert ways_to_fit(tiny, "cpu", survey) == {"gradient_checkpointing": True}
    card(budget(tiny.changed(gradient_checkpointing=True, per_device_train_batch_size=1), "cpu", survey).peak)
    assert ways_to_fit(tiny, "cpu", survey) == {
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
    }
    card(1000)
    assert ways_to_fit(tiny, "cpu", survey) is None


def test_shorter_rows_are_the_last_way(tiny, monkeypatch):
    options = tiny.changed(
        seq_len=2048, per_device_train_batch_size=1, gradient_accumulation_steps=3, gradient_checkpointing=True
    )
    survey = Survey(options)
    peak = budget(options.changed(seq_len=1024), "cpu", survey).peak
    monkeypatch.setitem(HARDWARE, "cpu", Hardware("a small one", peak * 12 // 11 + 12, {"float32": 1.0}, 0.5))
    changes = ways_to_fit(options, "cpu", survey)
    assert changes == {"seq_len": 1024, "gradient_accumulation_steps": 6}
    plan = budget(options.changed(**changes), "cpu", survey)
    assert plan.narrow and plan.fits and plan.tokens // plan.steps == 3 * 2048
    assert not budget(options.changed(seq_len=512), "cpu", survey).narrow


def test_a_card_without_bfloat16_asks_for_float16(tiny):
    options = tiny.changed(dtype="bfloat16")
    plan = budget(options, "t4")
    assert plan.seconds is None and "no bfloat16; set dtype to float16" in plan.notes[0]
    assert ways_to_fit(options, "t4") == {"dtype": "float16"}
    assert budget(options.changed(dtype="float16"), "t4").seconds > 0
    with pytest.raises(ValueError, match="unknown hardware 'abacus'; valid are t4"):
        budget(options, "abacus")


def test_4_bits_reach_linear_layers_only():
    dense, experts = (load_run(CONFIGS / f"{n}.yaml", {"quantization": "4bit"}) for n in ("olmo-2-1b", "olmoe-1b-7b"))
    survey = Survey(dense)
    embeddings = 2 * 100352 * 2048
    assert survey.parameters.base - survey.parameters.linear == pytest.approx(embeddings, rel=0.01)
    sparse = Survey(experts)
    assert sparse.parameters.linear < 0.05 * sparse.parameters.base
    # so that they are no way to fit a model of experts
    assert "quantization" not in ways_to_fit(experts.changed(quantization="none"), "t4", sparse)


# what the makers say, in parameters: total, and multiplied per token where it is another
PUBLISHED = {
    "llama-3.2-1b": (1.24e9, None), "llama-3.2-3b": (3.21e9, None), "qwen2.5-1.5b": (1.54e9, None),
    "qwen3-1.7b": (1.72e9, None), "qwen3-8b": (8.19e9, None), "gemma-3-270m": (268e6, None), "gemma-3-1b": (999_885_952, None),
    "olmo-2-1b": (1.48e9, None), "olmoe-1b-7b": (6.92e9, 1.2e9), "mistral-7b": (7.25e9, None),
}  # fmt: skip


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_run_has_the_base_that_it_names(path):
    options, text = load_run(path), path.read_text()
    found = Survey(options).parameters
    total, active = PUBLISHED[path.stem]
    assert found.base == pytest.approx(total, rel=0.005)
    if active is not None:
        assert found.active == pytest.approx(active, rel=0.05)
    remarks = json.loads(Path(options.base_config).read_text())
    assert remarks["_base"] == options.base_model and remarks["_source"]
    assert f"base {found.base:,}, LoRA {found.lora:,}, memory {found.memory:,}" in text
    assert (
        "# Not trained here: no hub and no GPU; the figures are computed from the model's config by `tptt train "
        in text
    )


def test_there_is_a_run_for_every_base():
    assert {p.stem for p in RUNS} == set(PUBLISHED) == {p.stem for p in (CONFIGS / "bases").glob("*.json")}


@pytest.mark.parametrize(
    "path",
    [p if p.stem == "gemma-3-270m" else pytest.param(p, marks=pytest.mark.slow) for p in RUNS],
    ids=lambda p: p.stem,
)
def test_the_figures_in_the_files_are_true(path):
    assert with_comments(path).partition(HEAD)[2] == path.read_text().partition(HEAD)[2]


def test_a_file_that_is_no_configuration(tmp_path):
    path = tmp_path / "x.json"
    for text in ("{", "[]", "{}", '{"model_type": "none"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="x.json is no model's configuration"):
            config_from_file(path)
    with pytest.raises(OSError):
        config_from_file(tmp_path / "y.json")
    assert HARDWARE["80gb"].usable < 80 * GIB
