"""Every operator of the memory through the invariants that a decoding, a padded and a packed model must keep."""

import pytest
import torch

from tests.families.checks import assert_invariants
from tests.families.models import assert_near, build, randomize, tokens
from tptt import MemoryConfig, TpttConfig, TpttModel, attach_memory
from tptt.config import OPERATORS
from tptt.hf import memories
from tptt.memory.linear_memory import RECURRENCES


@pytest.fixture(params=OPERATORS)
def model(request):
    config = MemoryConfig(operator=request.param, max_self_attn_length=6, sink_tokens=1, state_activation_every=4)
    return randomize(attach_memory(build("llama"), config))


def test_every_operator_has_a_recurrence():
    assert set(RECURRENCES) == set(OPERATORS)


def test_invariants(model):
    assert_invariants(model)


def test_rollback_equals_never_having_read(model):
    ids, wrong = tokens(1, 30), tokens(1, 5, seed=1)
    with torch.no_grad():
        want = model(input_ids=ids).logits
        cache = model(input_ids=ids[:, :20], use_cache=True).past_key_values
        cache.activate_past_recording()
        for piece in (torch.cat([ids[:, 20:21], wrong[:, :2]], 1), wrong[:, 2:]):
            model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache.crop(-5)
        assert_near(model(input_ids=ids[:, 21:], past_key_values=cache, use_cache=True).logits, want[:, 21:])


def test_every_parameter_of_the_memory_trains(model):
    model(input_ids=tokens(2, 20)).logits.square().sum().backward()
    for memory in memories(model):
        for name, parameter in memory.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("operator", OPERATORS)
def test_saved_and_loaded(operator, tmp_path):
    build("llama").save_pretrained(tmp_path / "base")
    config = TpttConfig(base_model_name=tmp_path / "base", operator=operator)
    model = randomize(TpttModel(config)).eval()
    model.save_pretrained(tmp_path / "out")
    again = TpttModel.from_pretrained(tmp_path / "out").eval()
    assert again.config.operator == operator
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens(1, 20)).logits, model(input_ids=tokens(1, 20)).logits)


@pytest.mark.parametrize("gate", ("k", "v", "kv"))
def test_gates_without_parameters(gate, tmp_path):
    """Their short history passes through pieces, padding and a roll-back."""
    model = randomize(attach_memory(build("llama"), MemoryConfig(write_gate=gate, max_self_attn_length=6)))
    assert not any("write_gate" in name for name, _ in model.named_parameters())
    assert_invariants(model)
    test_rollback_equals_never_having_read(model)


def test_one_state_per_kv_head(tmp_path):
    """A quarter of the states, shared by the query heads of a group."""
    one, each = (
        randomize(attach_memory(build("llama-tied"), MemoryConfig(states=states, operator="gated_delta_product")))
        for states in ("kv_head", "query_head")
    )
    caches = [model(input_ids=tokens(1, 9), use_cache=True).past_key_values for model in (one, each)]
    assert [cache.layers[0].state.shape[1] for cache in caches] == [1, 4]
    assert_invariants(one)
    test_rollback_equals_never_having_read(one)
    test_every_parameter_of_the_memory_trains(one)
