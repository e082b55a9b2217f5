import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tptt import MemoryConfig, attach_memory
from tptt.evaluation import verify
from tptt.evaluation.verify import TOLERANCE
from tptt.memory.features import MAPS


@pytest.mark.parametrize("name", MAPS)
def test_features_have_unit_length_and_their_width(name):
    features = MAPS[name](3, 8)
    out = features(torch.randn(2, 5, 3, 8))
    assert out.shape == (2, 5, 3, features.width)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(2, 5, 3))


def test_the_product_of_cubic_features_is_the_third_power_of_the_cosine():
    cubic = MAPS["cubic"](2, 16)
    x, y = torch.randn(2, 1, 200, 2, 16)
    cosine = torch.cosine_similarity(cubic.mapped(x), cubic.mapped(y), dim=-1)
    torch.testing.assert_close((cubic(x) * cubic(y)).sum(-1), cosine**3)


@pytest.mark.parametrize(("head_dim", "rows"), [(2, 2), (8, 8), (32, 13), (64, 17), (128, 22), (256, 28)])
def test_cubic_features_are_at_most_sixteen_times_as_many_as_channels(head_dim, rows):
    cubic = MAPS["cubic"](1, head_dim)
    assert cubic.weight.shape == (1, rows, head_dim)
    assert cubic.width == rows * (rows + 1) * (rows + 2) // 6 <= 16 * head_dim


def test_features_begin_from_maps_until_they_are_trained():
    for name in ("cubic", "sign_split"):
        features, maps = MAPS[name](3, 8), torch.randn(3, 8, 8)
        assert features.begin_from(torch.randn(3, 8, 8)) and features.begin_from(maps)
        assert torch.equal(features.weight, maps[:, : features.weight.shape[1]])
        with torch.no_grad():
            features.weight[1, 2, 3] += 0.01
        assert not features.begin_from(torch.randn(3, 8, 8))


def test_a_model_with_cubic_features_keeps_the_invariants():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = attach_memory(
        LlamaForCausalLM(config).eval(),
        MemoryConfig(feature_map="cubic", max_self_attn_length=8, states="kv_head"),
    )
    for name, difference in verify(model).items():
        assert isinstance(difference, float) and difference < TOLERANCE, (name, difference)
