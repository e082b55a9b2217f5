"""One model at work in several threads: a server's, the replicas of nn.DataParallel, autograd's."""

import copy
from functools import partial
from threading import Thread

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, randomize, tokens
from tptt import MemoryConfig, attach_memory
from tptt.hf.masks import PASSED_DOWN
from tptt.hf.slots import patched_attention, slot_of

POSITIONS = torch.cat([torch.arange(8), torch.arange(12)])[None]
PACKED = {"input_ids": tokens(1, 20, seed=1), "position_ids": POSITIONS}
PADDED = {"input_ids": tokens(2, 14), "attention_mask": torch.ones(2, 14, dtype=torch.long)}
PADDED["attention_mask"][0, :5] = 0


def in_a_thread(work, *args):
    """What ``work`` returns, computed in another thread."""
    found = []
    thread = Thread(target=lambda: found.append(work(*args)))
    thread.start()
    thread.join()
    return found[0]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def keep_from_attention(module):
    """Let the layer pass no keywords on to its attention ``module``, as some families' do."""

    def without(module, args, kwargs):
        return args, {k: v for k, v in kwargs.items() if k not in PASSED_DOWN}

    module.register_forward_pre_hook(without, with_kwargs=True, prepend=True)


@pytest.mark.parametrize("settings", [{}, {"max_self_attn_length": 6}, {"cross_gate": True}], ids=str)
@pytest.mark.parametrize("place", ["embed_tokens", "layers.0.input_layernorm", "layers.0.self_attn.k_proj"])
@pytest.mark.parametrize("first, second", [(PADDED, PACKED), (PACKED, PADDED)], ids=["padded", "packed"])
def test_a_call_in_the_middle_of_another(settings, place, first, second):
    model = randomize(attach_memory(tiny_model("llama"), MemoryConfig(**settings)))
    for module in patched_attention(model):
        keep_from_attention(module)
    want, other, got = logits(model, first), logits(model, second), []

    def meanwhile(*_):
        handle.remove()
        got.append(in_a_thread(logits, model, second))

    handle = model.model.get_submodule(place).register_forward_hook(meanwhile)
    assert torch.equal(logits(model, first), want)
    assert torch.equal(got[0], other)


def test_recomputed_in_another_thread():
    """Gradient checkpointing on CUDA: in autograd's own, without the hooks of the layer."""
    model = randomize(attach_memory(tiny_model("llama"), MemoryConfig()))

    def gradients(backward):
        model.zero_grad()
        backward(model(**PACKED, use_cache=False).logits.pow(2).mean().backward)
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for module in patched_attention(model):
        keep_from_attention(module)
    want = gradients(lambda backward: backward())
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for a, b in zip(gradients(in_a_thread), want, strict=True):
        assert_near(a, b)


def replica_of(model, factor):
    """As nn.DataParallel makes them, with its own parameters: ``factor`` times the model's."""
    replicas = {m: m._replicate_for_data_parallel() for m in model.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter * factor)
    return replicas[model]


@pytest.mark.parametrize("settings", [{}, {"cross_gate": True}], ids=str)
@pytest.mark.parametrize("lora", [False, True])
def test_replicas_compute_with_their_own_parameters(settings, lora):
    model = randomize(attach_memory(tiny_model("llama"), MemoryConfig(**settings)))
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "o_proj"])).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.1
    replicas = [replica_of(model, 1.0), replica_of(model, 1.1)]
    for _ in range(2):
        for replica, same in zip(replicas, (model, other), strict=True):
            assert torch.equal(in_a_thread(logits, replica, PADDED), logits(same, PADDED))
    assert torch.equal(logits(copy.deepcopy(model), PADDED), logits(model, PADDED))


def test_a_replicas_hooks_are_the_models():
    """A replica may be the first to run: the model neither hooks again nor keeps the replica."""
    model = randomize(attach_memory(tiny_model("llama"), MemoryConfig()))
    replica = replica_of(model, 1.0)
    logits(replica, PADDED)
    assert_near(logits(copy.deepcopy(model), PADDED), logits(replica, PADDED))
    slot = slot_of(patched_attention(model)[0])
    before = dict(slot.hooks)
    logits(model, PADDED)
    assert slot.hooks == before
