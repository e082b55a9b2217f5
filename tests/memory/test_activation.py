"""delta_rule_gelu: the state goes through sign(S) GELU(|S|) at absolute places of a sequence."""

import math

import pytest
import torch

from tptt import LinearAttention, MemoryConfig
from tptt.memory import LayerState, LinearMemory, Tokens


def by_hand(q, k, v, beta, every, start=0):
    """The definition, token by token, in float64; q, k, v, beta as one head: [T, .]."""
    state, out = torch.zeros(k.shape[-1], v.shape[-1], dtype=torch.float64), []
    for t in range(len(k)):
        state = state + beta[t] * torch.outer(k[t], v[t] - state.T @ k[t])
        out.append(state.T @ q[t])
        if (start + t + 1) % every == 0:
            size = state.abs()
            state = state.sign() * size * 0.5 * (1 + torch.erf(size / math.sqrt(2)))
    return torch.stack(out), state


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_against_the_definition(every):
    config = MemoryConfig(operator="delta_rule_gelu", state_activation_every=every, feature_map="sign_split")
    memory = LinearMemory(config, 16, 2, 2, 6)
    torch.manual_seed(0)
    x, k, v = torch.randn(1, 20, 16), torch.randn(1, 20, 2, 6), torch.randn(1, 20, 2, 6)
    update = memory.update(Tokens(x, k, v, None))
    q = torch.randn(1, 20, 2, 12)
    out, state = update.run(q, None)
    for h in range(2):
        parts = (y[0, :, h].detach().double() for y in (q, update.k, update.v, update.beta))
        want, after = by_hand(*parts, every)
        torch.testing.assert_close(out[0, :, h].double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state[0, h].double(), after, rtol=1e-5, atol=1e-5)


def layer(every=4):
    torch.manual_seed(0)
    return LinearAttention(24, 4, 2, MemoryConfig(operator="delta_rule_gelu", state_activation_every=every)).eval()


def test_calls_of_any_length_and_padding_change_nothing():
    """The places are counted among the real tokens of each row, never within a call."""
    module, x = layer(), torch.randn(2, 21, 24)
    want, state = module(x)
    out, carried = [], None
    for part in x.split([1, 2, 5, 1, 9, 3], 1):
        o, carried = module(part, state=carried)
        out.append(o)
    torch.testing.assert_close(torch.cat(out, 1), want)
    torch.testing.assert_close(carried.memory, state.memory)
    assert carried.seen.tolist() == [21, 21]
    padded = torch.cat([torch.full((2, 5, 24), 3.0), x], 1)
    mask = torch.ones(2, 26, dtype=torch.bool)
    mask[:, :5] = False
    torch.testing.assert_close(module(padded, mask)[0][:, 5:], want)
    ragged = mask.clone()
    ragged[0] = True
    row = module(x[1:])[0]
    torch.testing.assert_close(module(padded, ragged)[0][1:, 5:], row)


def test_the_sign_is_kept():
    module = layer(every=1)
    _, state = module(torch.randn(1, 30, 24))
    assert (state.memory < -1e-2).any() and (state.memory > 1e-2).any()
    assert isinstance(state, LayerState)


def test_it_counts_where_the_plain_rule_does_not():
    x = torch.randn(1, 20, 24)
    often, never = layer(every=4)(x)[0], layer(every=1000)(x)[0]
    torch.testing.assert_close(often[:, :4], never[:, :4])
    assert not torch.allclose(often[:, 4:], never[:, 4:])
