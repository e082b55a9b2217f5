"""What puts a model into eval mode for a while gives every submodule its own mode back."""

import pytest
import torch

from benchmarks.tiny import tiny_model
from tptt import MemoryConfig, Session, attach_memory
from tptt.hf import calibrate

IDS = torch.randint(3, 60, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "use", [lambda model: calibrate(model, IDS), lambda model: Session(model).read(IDS)], ids=["calibrate", "session"]
)
def test_every_submodule_comes_back_to_its_own_mode(use):
    model = attach_memory(tiny_model("llama"), MemoryConfig(max_self_attn_length=8, feature_width=64)).train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    use(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.training and not model.model.layers[0].training
