"""The gate that moves mu, by the definition of each."""

import pytest
import torch

from tptt import MemoryConfig
from tptt.memory import LinearMemory
from tptt.memory.gates import MIX

HIDDEN, HEADS = 12, 3


def made(gate, weight=0.3):
    return LinearMemory(MemoryConfig(mix_gate=gate, mag_weight=weight, feature_width=32), HIDDEN, HEADS, HEADS, 8)


@pytest.mark.parametrize("gate", MIX)
def test_mu_begins_at_its_weight_for_every_token_and_head(gate):
    mu = made(gate).mu(torch.randn(2, 5, HIDDEN))
    assert mu.shape == (2, 5, HEADS)
    torch.testing.assert_close(mu, torch.full_like(mu, 0.3))


def test_mlp_by_hand():
    memory = made("mlp", 0.5)
    gate, x = memory.mix_gate, torch.randn(2, 5, HIDDEN)
    with torch.no_grad():
        gate.weight.normal_()
        gate.bias.normal_()
        asked = torch.stack([(x * row).sum(-1) for row in gate.down], -1)
        want = torch.stack([(asked / (1 + (-asked).exp()) * row).sum(-1) for row in gate.weight], -1) + gate.bias
        torch.testing.assert_close(memory.mu(x), 1 / (1 + (-want).exp()))
        assert (memory.mu(x) - memory.mu(-x)).abs().max() > 0.1


def test_what_it_asks_is_the_same_in_every_process_and_is_learned():
    torch.manual_seed(1)
    first = made("mlp").mix_gate
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = made("mlp").mix_gate
    assert torch.equal(first.down, second.down) and torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        second.weight.normal_()
    second(torch.randn(1, 4, HIDDEN)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in (second.down, second.weight, second.bias))
    assert set(dict(second.named_parameters())) == {"down", "weight", "bias"}


def test_any_precision_is_computed_in_float32():
    gate, x = made("mlp").mix_gate.bfloat16(), torch.randn(2, 3, HIDDEN, dtype=torch.bfloat16)
    assert gate(x).dtype == torch.float32
