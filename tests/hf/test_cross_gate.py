"""Cross gate: the product of both branches, behind the output projection."""

import pytest
import torch

from benchmarks.tiny import tiny_model
from tests.families.checks import assert_invariants
from tests.families.models import assert_near, build, randomize, tokens
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory, set_mag_weight

WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}


def branches(model, layer, ids):
    """Softmax and memory branch [B, T, H, V], mu [B, T, H] and the output projection's result of one layer."""
    seen, attention = {}, model.model.layers[layer].self_attn
    memory, mix = attention.liza, attention.liza.mix

    def spy(softmax, o, hidden):
        seen.update(softmax=softmax, memory=o, mu=memory.mu(hidden))
        return mix(softmax, o, hidden)

    memory.mix = spy
    handle = attention.o_proj.register_forward_hook(lambda m, a, out: seen.update(out=out))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    del memory.mix
    return seen, attention.o_proj


@pytest.mark.parametrize("bias", [False, True])
def test_against_the_formula(bias):
    base = tiny_model("llama", attention_bias=bias)
    model = randomize(attach_memory(base, MemoryConfig(cross_gate=True)))
    model(input_ids=tokens(1, 2))  # sets the hooks, so that ours comes behind
    seen, projection = branches(model, 0, tokens(2, 12))
    soft = seen["softmax"].unflatten(-1, seen["memory"].shape[2:])
    mu = seen["mu"][..., None]
    a = ((1 - mu) * soft).flatten(2) @ projection.weight.T
    b = (mu * seen["memory"]).flatten(2) @ projection.weight.T
    want = a + b + a * b + (projection.bias if bias else 0.0)
    assert_near(seen["out"], want.detach())


@pytest.mark.parametrize("settings", [{}, WINDOW, {"memory_only_layers": [0]}, {"operator": "kda"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_invariants(family, settings):
    if family == "falcon" and "memory_only_layers" in settings:
        settings = {}
    model = randomize(attach_memory(tiny_model(family), MemoryConfig(cross_gate=True, **settings)))
    assert_invariants(model, ("no future", "pieces", "left padding", "greedy", "beams"))


def test_mu_zero_is_the_base():
    base, ids = build("llama"), tokens(2, 12)
    with torch.no_grad():
        want = base(input_ids=ids).logits
        model = randomize(attach_memory(base, MemoryConfig(cross_gate=True)))
        set_mag_weight(model, 0.0)
        assert torch.equal(model(input_ids=ids).logits, want)


def test_with_lora_saved_loaded_and_trained(tmp_path):
    build("llama").save_pretrained(tmp_path / "base")
    lora = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "o_proj"], "task_type": "CAUSAL_LM"}
    model = TpttModel(TpttConfig(base_model_name=tmp_path / "base", cross_gate=True, lora_config=lora))
    model = randomize(model).eval()
    ids = tokens(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)
    model.save_pretrained(tmp_path / "out")
    again = TpttModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
        merged = model.merge_and_unload()
        assert_near(merged(input_ids=ids).logits, again(input_ids=ids).logits)


def test_without_an_output_projection_it_is_refused():
    with pytest.raises(ValueError, match="holds no output projection"):
        attach_memory(tiny_model("bert"), MemoryConfig(cross_gate=True))
