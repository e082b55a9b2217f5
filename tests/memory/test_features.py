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


def test_cubic_is_what_it_says_and_tells_keys_apart():
    cubic, split = MAPS["cubic"](1, 16), MAPS["sign_split"](1, 16)
    x, y = torch.randn(2, 1, 200, 1, 16)
    raw = (x[0, :, 0] @ cubic.weight[0].T).relu() ** 3
    torch.testing.assert_close(cubic(x)[0, :, 0], raw / raw.norm(dim=-1, keepdim=True))

    near = x + 0.5 * y

    def likeness(features):  # of keys that nearly match
        return float((features(x) * features(near)).sum(-1).mean().detach())

    assert cubic.width == 4 * split.width and likeness(cubic) < likeness(split) - 0.03


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
