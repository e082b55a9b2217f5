"""A window's cache layer is told of each call before it gets the call's keys, once."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.families.models import build, tokens
from tptt import MemoryConfig, attach_memory
from tptt.hf import as_base
from tptt.hf.window_cache import WindowLayer
from tptt.inference.snapshot import new_cache

CPU = torch.device("cpu")


def keys(n):
    return torch.randn(1, 2, n, 4)


@pytest.mark.parametrize("read", [0, 12], ids=["empty", "in the ring"])
def test_an_update_that_nothing_was_said_of(read):
    layer = WindowLayer(4, 1)
    for _ in range(read):
        layer.prepare(None, 1, 1, CPU)
        layer.update(keys(1), keys(1))
    assert (layer._ring is not None) is bool(read)
    with pytest.raises(
        RuntimeError, match="keeps the last 4 tokens, and the attention that updates it has no such window"
    ):
        layer.update(keys(1), keys(1))
    layer.prepare(None, 1, 1, CPU)
    layer.update(keys(1), keys(1))
    with pytest.raises(RuntimeError, match="keeps the last 4 tokens"):
        layer.update(keys(1), keys(1))  # twice
    assert layer.get_seq_length() == read + 1


@pytest.mark.parametrize("said, given", [(1, 3), (3, 1)])
def test_an_update_of_another_length(said, given):
    layer = WindowLayer(4)
    layer.prepare(None, 1, said, CPU)
    with pytest.raises(RuntimeError, match=f"prepared for {said} tokens and gets {given}"):
        layer.update(keys(given), keys(given))
    assert layer.get_seq_length() == 0


def test_a_call_that_failed_in_between_leaves_nothing_behind():
    layer = WindowLayer(4)
    layer.prepare(None, 1, 3, CPU)
    layer.prepare(None, 1, 2, CPU)  # the one before never came to its update
    assert layer.update(keys(2), keys(2))[0].shape[2] == 2


def test_a_base_cannot_go_on_from_it():
    base = build("llama")
    model = attach_memory(copy.deepcopy(base), MemoryConfig(max_self_attn_length=6))
    with torch.no_grad():
        for read in (4, 20):
            cache = new_cache(model)
            model(input_ids=tokens(1, read), past_key_values=cache)
            with pytest.raises(RuntimeError, match="made by another model, or the memory is switched off"):
                base(input_ids=tokens(1, 1), past_key_values=copy.deepcopy(cache))
            with as_base_of(model), pytest.raises(RuntimeError, match="or the memory is switched off"):
                model(input_ids=tokens(1, 1), past_key_values=copy.deepcopy(cache))
        cache = DynamicCache(config=base.config)
        base(input_ids=tokens(1, 5), past_key_values=cache)
        with pytest.raises(ValueError, match="already holds 5 tokens that this memory has not read"):
            model(input_ids=tokens(1, 1), past_key_values=cache)


def as_base_of(model):
    for name, p in model.named_parameters():
        p.requires_grad_(".liza." in name)
    return as_base(model)
