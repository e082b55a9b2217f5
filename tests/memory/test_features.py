import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tptt import MemoryConfig, attach_memory
from tptt.evaluation import verify
from tptt.evaluation.verify import TOLERANCE
from tptt.memory import LinearMemory
from tptt.memory.features import MAPS, SHARPNESS


@pytest.mark.parametrize("name", MAPS)
def test_features_have_unit_length_and_their_width(name):
    features = MAPS[name](3, 8, 22)
    out = features(torch.randn(2, 5, 3, 8))
    assert out.shape == (2, 5, 3, features.width)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(2, 5, 3))


@pytest.mark.parametrize("head_dim", [16, 80])
def test_the_product_of_fourier_features_is_a_gaussian_kernel(head_dim):
    """Of many features; of few it is off by what their number lets expect, at a match by nothing."""
    x = torch.randn(300, 1, 2, head_dim)
    y = x + torch.linspace(0, 2, 300)[:, None, None, None] * torch.randn_like(x)
    off = {}
    for width in (64, 16384):
        fourier = MAPS["fourier"](2, head_dim, width)
        kernel = torch.exp(-SHARPNESS * (1 - torch.cosine_similarity(fourier.mapped(x), fourier.mapped(y), dim=-1)))
        apart = (fourier(x) * fourier(y)).sum(-1) - kernel
        assert apart[0].abs().max() < 1e-5
        off[width] = apart.pow(2).mean().sqrt() * width**0.5
    assert off[64] < 1.2 and off[16384] < 1.2, off


@pytest.mark.parametrize("kernels", (True, False))
@pytest.mark.parametrize("head_dim, width", [(8, 22), (16, 64), (32, 1000), (80, 130)])
def test_fourier_features_and_their_gradients_are_those_of_the_formula(head_dim, width, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr("tptt.memory.features.fourier_serves", lambda mapped: False)
    fourier = MAPS["fourier"](3, head_dim, width)
    x = torch.randn(2, 37, 3, head_dim, requires_grad=True)
    weights = torch.randn(2, 37, 3, width)
    out = fourier(x)
    got = [out, *torch.autograd.grad((out * weights).sum(), (x, fourier.weight))]
    given, learned = (t.detach().double().requires_grad_() for t in (x, fourier.weight))
    mapped = torch.einsum("bthd,hed->bthe", given, learned)
    angles = mapped / mapped.norm(dim=-1, keepdim=True) @ fourier.frequencies.double().T
    exact = torch.cat([angles.cos(), angles.sin()], -1) * (width / 2) ** -0.5
    want = [exact, *torch.autograd.grad((exact * weights.double()).sum(), (given, learned))]
    for have, right in zip(got, want, strict=True):
        assert have.shape == right.shape and (have.double() - right).norm() < 2e-6 * right.norm()
    with torch.no_grad():
        assert torch.equal(fourier(x), out)


@pytest.mark.parametrize("name", MAPS)
def test_autocast_does_not_reach_features(name):
    features, x = MAPS[name](3, 32, 64), torch.randn(2, 37, 3, 32)

    def run(cast):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = features(given)
        return out, torch.autograd.grad(out.pow(3).sum(), given)[0]

    assert all(torch.equal(have, want) for have, want in zip(run(True), run(False), strict=True))


def test_queries_and_keys_have_the_same_frequencies_and_checkpoints_keep_them():
    memory = LinearMemory(MemoryConfig(feature_width=10), 16, 4, 2, 8)
    assert torch.equal(memory.query_features.frequencies, memory.key_features.frequencies)
    assert memory.query_features.frequencies.shape == (5, 8) and memory.key_features.width == 10
    assert {"query_features.frequencies", "key_features.frequencies"} <= set(memory.state_dict())


@pytest.mark.parametrize("width", [0, 7, True, 64.0])
def test_a_feature_width_that_is_none_is_refused(width):
    with pytest.raises(ValueError, match="feature_width"):
        MemoryConfig(feature_width=width)


def test_features_begin_from_maps_until_they_are_trained():
    for name in ("fourier", "sign_split"):
        features, maps = MAPS[name](3, 8, 12), torch.randn(3, 8, 8)
        assert features.begin_from(torch.randn(3, 8, 8)) and features.begin_from(maps)
        assert torch.equal(features.weight, maps[:, : features.weight.shape[1]])
        with torch.no_grad():
            features.weight[1, 2, 3] += 0.01
        assert not features.begin_from(torch.randn(3, 8, 8))


def test_a_model_with_fourier_features_keeps_the_invariants():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = attach_memory(
        LlamaForCausalLM(config).eval(),
        MemoryConfig(feature_map="fourier", feature_width=64, max_self_attn_length=8, states="kv_head"),
    )
    for name, difference in verify(model).items():
        assert isinstance(difference, float) and difference < TOLERANCE, (name, difference)
