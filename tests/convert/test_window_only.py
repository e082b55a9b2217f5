import pytest
import torch

from tptt.convert.window_only import window_alone
from tptt.hf import memories, set_mag_weight


def test_window_alone_is_mu_zero_without_the_memory(tiny):
    model = tiny(max_self_attn_length=8).eval()
    set_mag_weight(model, 0.0)
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(ids).logits
        assert torch.equal(before, window_alone(model)(ids).logits)
    assert not memories(model)
    with pytest.raises(ValueError, match="no memory"):
        window_alone(model)
    out = model.generate(ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 43)
