"""The memory of a training step, against what real models, optimizers and autograd hold."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.tiny import tiny_config
from tests.estimate.bases import describe
from tptt import parameter_groups
from tptt.estimate.memory import peak_memory
from tptt.estimate.resources import estimate_resources
from tptt.estimate.survey import Survey
from tptt.evaluation.perplexity import next_token_losses
from tptt.hf import is_lora_parameter, is_memory_parameter
from tptt.run.options import RunOptions


def parts(options, dtype=torch.float32):
    return peak_memory(options, Survey(options), dtype, dtype, options.training.seq_len)


def test_parameters_are_those_of_the_model(tiny, built):
    model, found = built(tiny), Survey(tiny).parameters
    names = dict(model.named_parameters())
    assert found.total == sum(p.numel() for p in names.values())
    assert found.trained == sum(p.numel() for p in names.values() if p.requires_grad)
    assert found.lora == sum(p.numel() for n, p in names.items() if is_lora_parameter(n))
    assert found.memory == sum(p.numel() for n, p in names.items() if is_memory_parameter(n))
    whole = Survey(tiny.changed(lora_r=0)).parameters
    assert whole.lora == 0 and whole.trained == whole.total


def test_gradients_and_optimizer_states_are_those_of_a_step(tiny, built):
    model, found = built(tiny), estimate_resources(tiny, "cpu")
    optimizer = torch.optim.AdamW(parameter_groups(model))
    ids = torch.randint(61, (3, 64))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = sum(x.nbytes for s in optimizer.state.values() for x in s.values() if x.ndim)
    assert found.parts["AdamW states"] == states and found.parts["gradients"] == gradients
    assert found.parts["base weights"] == 4 * found.parameters.base and found.steps == 10


@pytest.mark.parametrize("changes", [{}, {"max_self_attn_length": None}, {"attn_implementation": "eager"}], ids=str)
def test_activations_are_those_that_autograd_keeps(tiny, built, changes, monkeypatch):
    """To the byte but for fused attention: the CPU's keeps another layout of its mask and a number for each query, and
    its blocks of a window share the keys of a group, which a GPU's copy."""
    monkeypatch.setattr("tptt.ops.native.unavailable", lambda: "off: a GPU has no C++ kernels")
    options = tiny.changed(**changes)
    model, kept = built(options), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive = []

    def keep(x):
        alive.append(x)
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(input_ids=torch.randint(61, (3, 64)), use_cache=False)
    real = sum(size for place, size in kept.items() if place not in own)
    assert parts(options)["activations"] == pytest.approx(real, rel=1e-5 if "attn_implementation" in changes else 0.01)


def test_recomputed_activations_take_less(tiny):
    plain, less = parts(tiny), parts(tiny.changed(gradient_checkpointing=True))
    assert less["activations"] < plain["activations"]
    assert {k: v for k, v in less.items() if k != "activations"} == {
        k: v for k, v in plain.items() if k != "activations"
    }


def test_recomputed_activations_by_hand(options_of):
    """What goes into each layer, and the activations of one of them."""
    options = options_of("llama", gradient_checkpointing=True)
    tokens, layers, hidden = 3 * 64, 2, 32
    kept = parts(options.changed(gradient_checkpointing=False))["activations"]
    assert parts(options)["activations"] == pytest.approx(tokens * layers * hidden * 4 + kept / layers, abs=tokens)


def test_recomputing_needs_room_for_the_widest_memory(tiny):
    def activations(**options):
        return parts(tiny.changed(**options))["activations"]

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
    options = options.changed(seq_len=length, per_device_train_batch_size=rows)
    # the labels and the losses are left out
    assert parts(options, dtype)["logits and loss"] == pytest.approx(peak, rel=0.02)


def test_a_teacher_takes_what_it_gives_out(tiny):
    plain, distilled = parts(tiny), parts(tiny.changed(kl_weight=0.1))
    aligned = parts(tiny.changed(kl_weight=0.1, attention_transfer_weight=0.1))
    logits, outputs = 3 * 64 * 61, 3 * 64 * 2 * 4 * 8  # two layers, four heads of eight
    assert "teacher" not in plain
    assert distilled["teacher"] == logits * (4 + 2 * 4)  # and two log softmaxes in float32
    assert aligned["teacher"] == distilled["teacher"] + 4 * outputs


def test_far_weights_take_no_more_memory(options_of):
    """They are done with before the step's own logits are there."""
    options = options_of("llama")
    assert parts(options.changed(long_context_weight=1.0)) == parts(options)


def test_4_bits_reach_linear_layers_alone(options_of):
    options = options_of("llama", quantization="4bit")
    found, parameters = parts(options), Survey(options).parameters
    other = parameters.base - parameters.linear
    assert found["base weights"] == pytest.approx(parameters.linear * (0.5 + 1 / 64 + 1 / 4096) + 4 * other, abs=1)
    assert parameters.linear == 2 * (32 * (2 * 4 + 2 * 2) * 8 + 3 * 32 * 48)


def test_the_masks_of_windows_are_kept_by_each_layer(options_of):
    """As biases, for each row and each of two layers: of all pairs, or of blocks of 8 queries and 16 keys."""
    kept = {w: parts(options_of("llama", max_self_attn_length=w))["activations"] for w in (None, 40)}
    assert kept[40] - kept[None] == 3 * 2 * 64 * 64 * 4
    masks = Survey(options_of("llama", max_self_attn_length=8))._masked(64)
    assert masks == 2 * 8 * 8 * 16
