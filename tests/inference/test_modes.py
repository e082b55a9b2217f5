"""Reading leaves every part of the model in the mode that it was in."""

import torch

from tptt import Session


def test_a_session_leaves_frozen_parts_in_eval_mode(tiny):
    model = tiny(max_self_attn_length=8).train()
    model.inner.model.layers[0].mlp.eval()
    before = [m.training for m in model.modules()]
    Session(model).read(torch.arange(3, 20))
    assert [m.training for m in model.modules()] == before and len(set(before)) == 2
