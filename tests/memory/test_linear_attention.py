"""LinearAttention: carries its state, passes over padding, sees both sides where it is told to."""

import pytest
import torch

from tptt import LinearAttention, MemoryConfig
from tptt.config import OPERATORS
from tptt.memory import Tokens


def make(**options):
    torch.manual_seed(0)
    layer = LinearAttention(24, 4, num_key_value_heads=2, **options)
    for parameter in layer.memory.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return layer


def inputs(batch, tokens):
    return torch.randn(batch, tokens, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("operator", OPERATORS)
def test_pieces_equal_one_pass(operator):
    layer, x = make(config=MemoryConfig(operator=operator)), inputs(2, 40)
    want, want_state = layer(x)
    out, state = [], None
    for a, b in ((0, 17), (17, 18), (18, 19), (19, 40)):
        o, state = layer(x[:, a:b], state=state)
        out.append(o)
    torch.testing.assert_close(torch.cat(out, 1), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.memory, want_state.memory, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bidirectional", (False, True))
def test_padding_changes_nothing(bidirectional):
    layer, x = make(bidirectional=bidirectional), inputs(2, 20)
    for side in (0, 1):
        parts = [torch.full((2, 5, 24), 7.0), x]
        real = [torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 20, dtype=torch.bool)]
        padded, mask = (torch.cat(p[::-1] if side else p, 1) for p in (parts, real))
        got = layer(padded, mask)[0][mask].view(2, 20, 24)
        torch.testing.assert_close(got, layer(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_not_finite_under_padding_stays_there(operator):
    layer, x = make(config=MemoryConfig(operator=operator)), inputs(2, 20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, :3] = mask[1, 11] = False
    o, state = layer(torch.where(mask[..., None], x, torch.nan), mask)
    want, want_state = layer(torch.where(mask[..., None], x, 0.0), mask)
    assert torch.equal(o[mask], want[mask]) and torch.equal(state.memory, want_state.memory)


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_tokens(operator):
    layer = make(config=MemoryConfig(operator=operator))
    assert layer(inputs(2, 0))[0].shape == (2, 0, 24)


@pytest.mark.parametrize("operator", ("delta_product_r", "delta_product_c"))
@pytest.mark.parametrize("width", (4, 5))
def test_virtual_keys_are_made_of_keys_alone(operator, width):
    memory = LinearAttention(2 * width, 2, config=MemoryConfig(operator=operator)).memory
    x, k, v = torch.randn(1, 6, 2 * width), torch.randn(1, 6, 2, width), torch.randn(1, 6, 2, width)
    assert torch.equal(memory.update(Tokens(x, k, v, None)).k, memory.update(Tokens(x, k, v + 1, None)).k)


def test_only_a_bidirectional_layer_sees_the_future():
    x = inputs(1, 20)
    other = x.clone()
    other[:, 15] += 1
    for bidirectional in (False, True):
        layer = make(bidirectional=bidirectional)
        same = torch.equal(layer(x)[0][:, :15], layer(other)[0][:, :15])
        assert same is not bidirectional
    assert layer(x)[1] is None
    torch.testing.assert_close(layer(x.flip(1))[0].flip(1), layer(x)[0])


def test_it_trains_in_any_precision():
    layer, x = make().to(torch.bfloat16), inputs(2, 20).to(torch.bfloat16)
    o, state = layer(x)
    assert o.dtype == torch.bfloat16 and state.memory.dtype == torch.float32
    o.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("operator", OPERATORS)
def test_autocast_reaches_the_projections_alone(operator):
    layer, x = LinearAttention(64, 2, config=MemoryConfig(operator=operator, feature_width=64)), inputs(2, 40)
    x = torch.cat([x, x.flip(1), x[..., :16]], -1)
    computed = []
    layer.memory.key_features.register_forward_hook(lambda module, given, out: computed.append(out.dtype))

    def run(cast):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            o = layer(x)[0]
        o.float().square().sum().backward()
        return o.float(), torch.cat([p.grad.flatten() for p in layer.parameters()])

    for have, want in zip(run(True), run(False), strict=True):
        assert (have - want).norm() <= 5e-2 * want.norm()
    assert set(computed) == {torch.float32}


def test_errors():
    for sizes in ((25, 4), (24, 0), (24, 4, 0), (24, 4, -2)):
        with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads"):
            LinearAttention(*sizes)
    with pytest.raises(ValueError, match="takes no state"):
        make(bidirectional=True)(inputs(1, 4), state=torch.zeros(1))
