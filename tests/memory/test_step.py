"""One token in one native call is what advance and mix give."""

import pytest
import torch

from tptt import MemoryConfig
from tptt.memory import LayerState, LinearMemory, Tokens
from tptt.memory.features import MAPS
from tptt.ops.native import library as native
from tptt.ops.native import unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason="no native kernels here")
# heads, key/value heads, width of keys and of values, of the input
SHAPES = [(4, 2, 8, 8, 24), (3, 1, 5, 7, 13), (2, 2, 64, 64, 100), (8, 4, 24, 16, 33)]
TOLERANCE = {
    False: 2e-5,
    True: 5e-4,
}  # of outputs; normalised ones are small before, and their rounding grows with them
SETTINGS = [
    {},
    {"operator": "gated_delta_rule"},
    {"operator": "linear_attention"},
    {"feature_map": "silu"},
    {"write_gate": "constant", "mix_gate": "head"},
    {"mix_gate": "token"},
    {"mix_gate": "none", "mag_weight": 0.3},
    {"states": "query_head"},
    {"states": "kv_head", "operator": "gated_delta_rule", "feature_map": "silu"},
    {"mag_weight": 1.0},
    {"feature_map": "fourier", "feature_width": 46},
    {"feature_map": "fourier", "feature_width": 64, "operator": "gated_delta_rule"},
    {"feature_map": "fourier", "feature_width": 46, "operator": "linear_attention", "states": "kv_head"},
]


def made(settings, shape, dtype=torch.float32, batch=2):
    heads, kv_heads, width, value, hidden = shape
    torch.manual_seed(0)
    memory = LinearMemory(MemoryConfig(**settings), hidden, heads, kv_heads, width, value)
    with torch.no_grad():
        for p in memory.parameters():
            p.add_(0.3 * torch.randn_like(p))
    sizes = [(heads, width), (kv_heads, width), (kv_heads, value)]
    q, k, v = (torch.randn(batch, 1, *s).to(dtype) for s in sizes)
    softmax, x = torch.randn(batch, 1, heads * value).to(dtype), torch.randn(batch, 1, hidden).to(dtype)
    return memory, softmax, q, Tokens(x, k, v, None)


def by_parts(memory, softmax, q, tokens, state):
    read, after = memory.advance(q, tokens, LayerState(state))
    return memory.mix(softmax, read, tokens.hidden), after.memory


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instructions(request, monkeypatch):
    try:
        library = native.Library(native.FILE, request.param)
    except OSError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("tptt.ops.native.one_token.library", lambda: library)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_what_the_parts_give(settings, shape):
    memory, *inputs = made(settings, shape)
    with torch.no_grad():
        want, state = by_parts(memory, *inputs, None)
        for _ in range(3):
            ours = memory.step(*inputs, None if want is None else state.clone())
            want, state = by_parts(memory, *inputs, state)
            torch.testing.assert_close(ours[0], want, rtol=1e-5, atol=TOLERANCE[memory.normalised])
            torch.testing.assert_close(ours[1], state, rtol=1e-5, atol=1e-5)
        first = memory.step(*inputs, None)
        torch.testing.assert_close(
            first[0], by_parts(memory, *inputs, None)[0], rtol=1e-5, atol=TOLERANCE[memory.normalised]
        )


def test_the_state_is_overwritten():
    memory, *inputs = made({}, SHAPES[0])
    with torch.no_grad():
        state = torch.randn(2, memory.num_states, memory.key_features.width, 8)
        assert memory.step(*inputs, state)[1] is state


@pytest.mark.parametrize("feature_map", MAPS)
def test_what_is_not_finite_shows(feature_map):
    memory, softmax, q, tokens = made({"feature_map": feature_map}, SHAPES[0])
    with torch.no_grad():
        assert memory.step(softmax, q * torch.nan, tokens, None)[0].isnan().all()
        for name in ("k", "v"):
            wrong = tokens._replace(**{name: getattr(tokens, name) * torch.nan})
            assert memory.step(softmax, q, wrong, None)[0].isnan().all()


def test_mu_zero_is_exact():
    memory, *inputs = made({"mag_weight": 0.0}, SHAPES[0])
    with torch.no_grad():
        state = torch.randn(2, memory.num_states, memory.key_features.width, 8)
        assert torch.equal(memory.step(*inputs, state)[0], inputs[0])


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("feature_map", MAPS)
def test_bfloat16(feature_map):
    memory, *inputs = made({"operator": "gated_delta_rule", "feature_map": feature_map}, SHAPES[2], torch.bfloat16)
    with torch.no_grad():
        state = torch.randn(2, memory.num_states, memory.key_features.width, 64)
        want, after = by_parts(memory, *inputs, state.clone())
        ours = memory.step(*inputs, state)
    assert ours[0].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0], want, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours[1], after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"operator": "kda"}, {"operator": "delta_product"}, {"write_gate": "kv"}], ids=str
)
def test_what_it_cannot_do_it_leaves(settings):
    memory, *inputs = made(settings, SHAPES[0])
    with torch.no_grad():
        assert memory.step(*inputs, None) is None


def test_it_leaves_what_needs_gradients_or_has_several_tokens():
    memory, softmax, q, tokens = made({}, SHAPES[0])
    assert memory.step(softmax, q, tokens, None) is None
    with torch.no_grad():
        assert memory.step(softmax, q, tokens, None) is not None
        assert memory.step(softmax.repeat(1, 2, 1), q.repeat(1, 2, 1, 1), tokens.then(tokens), None) is None
        assert memory.step(softmax, q, tokens._replace(mask=torch.ones(2, 1, dtype=torch.bool)), None) is None
        assert memory.step(softmax.half(), q, tokens, None) is None
        assert memory.bfloat16().step(softmax, q, tokens, None) is None
