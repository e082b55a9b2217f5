"""Ablating the branches of a model, and what is read off its layers."""

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.tiny import randomized
from tests.small_llama import small_llama_config
from tptt import MemoryConfig, attach_memory, detach_memory
from tptt.convert.window_only import window_alone
from tptt.data import KeyValueRecall
from tptt.evaluation import branch_use, layer_use, mag_weight, perplexity, recall_accuracy
from tptt.hf import memories, memory_layers, set_mag_weight
from tptt.hf.slots import patched_attention, slot_of

WINDOW = 8


@pytest.fixture
def recall(words):
    return KeyValueRecall(words, torch.full((300,), 3), facts=4)


@pytest.fixture
def attached():
    def make(**options):
        torch.manual_seed(0)
        config = small_llama_config()
        model = randomized(LlamaForCausalLM(config))
        attach_memory(model, MemoryConfig(**{"max_self_attn_length": WINDOW} | options))
        generator = torch.Generator().manual_seed(1)
        for memory in memories(model):
            for parameter in memory.parameters():
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        return model

    return make


def ids(rows=2, length=32):
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(3))


def logits(model):
    with torch.no_grad():
        return model(ids(), use_cache=False).logits


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, None])
def test_the_weight_is_restored(attached, weight):
    model = attached(mag_weight=0.4)
    memories(model)[1].mag_weight.fill_(0.7)
    before = logits(model)
    with pytest.raises(RuntimeError, match="on purpose"), mag_weight(model, weight) as inside:
        assert inside is model
        expected = [0.4, 0.7] if weight is None else [weight] * 2
        assert [m.mag_weight.item() for m in memories(model)] == pytest.approx(expected)
        assert torch.equal(logits(model), before) is (weight is None)
        raise RuntimeError("on purpose")
    assert [m.mag_weight.item() for m in memories(model)] == pytest.approx([0.4, 0.7])
    assert torch.equal(logits(model), before)


def test_a_softmax_left_out_comes_back(attached):
    """Without a gate, mu = 1 takes the softmax out of the computation: only within."""
    model = attached(mix_gate="none", mag_weight=0.4)
    before = logits(model)
    with mag_weight(model, 1.0):
        assert not any(x.has_softmax for x in memory_layers(model))
    assert all(x.has_softmax for x in memory_layers(model))
    assert torch.equal(logits(model), before)


def test_arms_are_the_window_and_the_memory_alone(attached, recall):
    use = branch_use(attached(), recall, 32, WINDOW, rows=4, text=ids(4))
    assert list(use.recall) == list(use.perplexity) == ["both", "window only", "memory only"]
    assert len(set(use.perplexity.values())) == 3
    window = window_alone(attached())
    memory = attached(memory_only_layers="all", mix_gate="none")
    memory.load_state_dict(
        {k: v for k, v in attached().state_dict().items() if "mix_gate" not in k and "mag" not in k}, strict=False
    )
    for arm, model in (("both", attached()), ("window only", window), ("memory only", memory)):
        assert use.perplexity[arm] == pytest.approx(perplexity(model, ids(4)), rel=1e-5)
        assert use.recall[arm] == recall_accuracy(model, recall, 32, WINDOW, rows=4)


def test_text_may_be_left_out_and_arms_chosen(attached, recall):
    use = branch_use(attached(), recall, 32, WINDOW, rows=2, arms=("both", "memory only"))
    assert use.perplexity == {"both": None, "memory only": None} and len(use.recall) == 2


def test_layers_by_hand(attached):
    model, seen = attached(), {}
    for i, layer in enumerate(model.model.layers):
        memory = layer.self_attn.liza
        memory.mix_gate.register_forward_pre_hook(lambda m, args, i=i: seen.setdefault(("hidden", i), args[0]))
        inner = memory.mix

        def mix(softmax, o, hidden, i=i, inner=inner):
            seen.setdefault(("softmax", i), softmax)
            seen.setdefault(("memory", i), o)
            return inner(softmax, o, hidden)

        memory.mix = mix
    for i, use in enumerate(layer_use(model, ids())):
        memory = memories(model)[i]
        with torch.no_grad():  # mag_weight is .5: its logit 0
            gate = memory.mix_gate
            asked = seen["hidden", i] @ gate.down.T
            mu = torch.sigmoid((asked * torch.sigmoid(asked)) @ gate.weight.T + gate.bias)
        assert use.mu == pytest.approx(float(mu.mean()), rel=1e-4) and float(mu.std()) > 0
        softmax, read = (seen[name, i].pow(2).mean().sqrt() for name in ("softmax", "memory"))
        assert use.scale == pytest.approx(float(read / softmax), rel=1e-4)
    assert not any(slot_of(m).records for m in patched_attention(model))


def test_layers_follow_weight_and_scale(attached):
    model = attached()
    before = layer_use(model, ids())
    set_mag_weight(model, 0.9)
    memories(model)[0].output_scale.data *= 3
    after = layer_use(model, ids())
    assert after[0].scale == pytest.approx(3 * before[0].scale, rel=1e-4)
    assert all(a.mu > b.mu + 0.1 for a, b in zip(after, before, strict=True))


def test_layers_without_a_softmax(attached, recall):
    some = branch_use(attached(memory_only_layers=[1]), recall, 32, WINDOW, rows=2)
    assert [layer.scale is None for layer in some.layers] == [False, True]
    assert some.layers[1].mu == 1.0 and len(some.recall) == 3
    every = branch_use(attached(memory_only_layers="all"), recall, 32, WINDOW, rows=2)
    assert list(every.recall) == ["both"] and [layer.mu for layer in every.layers] == [1.0, 1.0]


def test_looking_leaves_the_model_as_it_was(attached, recall):
    model = attached().train()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    branch_use(model, recall, 32, WINDOW, rows=2)
    assert model.training
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    model(input_ids=ids(), labels=ids()).loss.backward()  # nothing of inference mode has stayed behind


def test_errors(attached, recall):
    model = attached()
    with pytest.raises(ValueError, match="unknown arm neither; valid are both, window only, memory only"):
        branch_use(model, recall, 32, WINDOW, arms=("neither",))
    with pytest.raises(ValueError, match="LlamaForCausalLM carries no memory"):
        branch_use(detach_memory(model), recall, 32, WINDOW)
