"""Virtual tokens and averaged gates against their definitions, across calls, padding and grouped heads."""

import math

import pytest
import torch

from tptt import MemoryConfig
from tptt.memory import LinearMemory, Tokens
from tptt.memory.history import ShortHistory, derivative
from tptt.memory.linear_memory import VIRTUAL
from tptt.memory.tptt_modes import averaged_beta, rotary


def raw(tokens=9, batch=2):
    return torch.randn(batch, tokens, 3, 8, generator=torch.Generator().manual_seed(0))


def before(x, i):
    """x shifted by i tokens, zeros before the start."""
    return torch.cat([torch.zeros_like(x[:, :i]), x[:, : x.shape[1] - i]], 1)


@pytest.mark.parametrize("steps", (1, 2, 3))
def test_derivative(steps):
    x = raw()
    got = ShortHistory(x, None, None, 4).each(lambda y: derivative(y, 4, steps))
    for m in range(steps):
        want = sum((-1) ** i * math.comb(m, i) * before(x, i) for i in range(m + 1)) / 2**m
        torch.testing.assert_close(got[:, :, m], want)


@pytest.mark.parametrize("steps", (2, 3))
def test_rotary_turns_pairs(steps):
    x = raw()
    got = ShortHistory(x, None, None, 1).each(lambda y: rotary(y, 1, steps))
    for m in range(steps):
        turn = torch.polar(torch.ones(()), torch.tensor(math.pi * m / steps))
        want = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)
        torch.testing.assert_close(got[:, :, m], want)
    assert not torch.allclose(got[:, :, 0], -got[:, :, 1])  # -k, -v would write the same association twice


@pytest.mark.parametrize("source", ("k", "v", "kv"))
def test_strength(source):
    x = raw()
    k, v = x.chunk(2, -1)
    y = {"k": k, "v": v, "kv": k * v}[source].mean(-1)
    want = torch.sigmoid((y + before(y, 1) + before(y, 2)) / 3)
    torch.testing.assert_close(
        ShortHistory(x, None, None, 2).each(lambda z: averaged_beta(z.chunk(2, -1), 2, source)), want
    )


@pytest.mark.parametrize("name", VIRTUAL)
def test_calls_and_padding_change_nothing(name):
    x, function = raw(), lambda y: VIRTUAL[name](y, 2, 3)
    want = ShortHistory(x, None, None, 2).each(function)
    first = ShortHistory(x[:, :1], None, None, 2)
    second = ShortHistory(x[:, 1:5], first.history, None, 2)
    third = ShortHistory(x[:, 5:], second.history, None, 2)
    torch.testing.assert_close(torch.cat([r.each(function) for r in (first, second, third)], 1), want)
    # padding anywhere, of any content, also between two calls
    real = torch.tensor([False, True, True, False, False, True, True, True, True, True, True, True, False])
    spread = torch.full((2, 13, 3, 8), 9.0)
    spread[:, real] = x
    mask = real.expand(2, -1)
    one = ShortHistory(spread[:, :7], None, mask[:, :7], 2)
    two = ShortHistory(spread[:, 7:], one.history, mask[:, 7:], 2)
    got = torch.cat([one.each(function), two.each(function)], 1)
    torch.testing.assert_close(got[:, real], want)
    torch.testing.assert_close(two.history, x[:, -2:])


def test_what_is_carried_holds_no_more_than_itself():
    history = ShortHistory(raw(tokens=50), None, None, 2).history
    assert history.untyped_storage().nbytes() == history.numel() * history.element_size()


def test_virtual_keys_have_unit_length_and_share_a_strength():
    memory = LinearMemory(MemoryConfig(operator="delta_product", states="query_head"), 24, 4, 2, 6)
    x, k, v = torch.randn(2, 7, 24), torch.randn(2, 7, 2, 6), torch.randn(2, 7, 2, 6)
    update = memory.update(Tokens(x, k, v, None))
    assert update.k.shape == (2, 7, 2, 4, 2048) and update.v.shape == (2, 7, 2, 4, 6)
    torch.testing.assert_close(update.k.norm(dim=-1), torch.ones(2, 7, 2, 4))
    assert torch.equal(update.beta[:, :, 0], update.beta[:, :, 1])
    assert torch.equal(update.v[:, :, 0], v.repeat_interleave(2, 2))


def test_repeated_tokens_leave_no_noise():
    """Equal keys differ by rounding only: what they write must not depend on it."""
    memory = LinearMemory(MemoryConfig(operator="delta_product"), 24, 4, 2, 6)
    x, k, v = torch.randn(1, 1, 24), torch.randn(1, 1, 2, 6), torch.randn(1, 1, 2, 6)
    x, k, v = x.expand(1, 5, -1), k.expand(1, 5, -1, -1), v.expand(1, 5, -1, -1)
    noise = 1e-7 * torch.randn(2, 1, 5, 2, 6)
    a, b = (memory.update(Tokens(x, k * (1 + n), v, None)) for n in noise)
    assert float((a.k - b.k).detach().abs().max()) < 1e-3
    assert float(memory.update(Tokens(x, k, v, None)).k[:, 1:, 1].detach().abs().max()) == 0.0
