import pytest

from tptt import parameter_groups
from tptt.surgery import memories


def test_groups_hold_every_trained_parameter_once(tiny):
    model = tiny()
    lora, memory = parameter_groups(model, 1e-3, 1e-2, 0.1)
    assert (lora["lr"], lora["weight_decay"], memory["lr"], memory["weight_decay"]) == (1e-3, 0.1, 1e-2, 0.0)
    owned = {id(p) for m in memories(model) for p in m.parameters()}
    assert {id(p) for p in memory["params"]} == owned
    assert sum(len(g["params"]) for g in (lora, memory)) == sum(p.requires_grad for p in model.parameters())


def test_groups_without_anything_to_train(tiny):
    with pytest.raises(ValueError, match="no parameter that trains"):
        parameter_groups(tiny().requires_grad_(False))
    with pytest.raises(ValueError, match="memory_lr"):
        parameter_groups(tiny(), memory_lr=-1.0)
