import pytest

from tptt import parameter_groups
from tptt.hf import memories
from tptt.train import default_rates


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
    with pytest.raises(ValueError, match="memory_learning_rate"):
        parameter_groups(tiny(), memory_learning_rate=-1.0)


def test_rates_follow_the_width_of_the_base(tiny):
    assert default_rates(128) == (5e-3, 2e-2)
    assert default_rates(2048) == pytest.approx((1.25e-3, 5e-3))
    model = tiny()
    usual = default_rates(model.config.get_text_config().hidden_size)
    assert tuple(g["lr"] for g in parameter_groups(model)) == usual
    assert tuple(g["lr"] for g in parameter_groups(model, learning_rate=1e-4)) == (1e-4, usual[1])
    assert tuple(g["lr"] for g in parameter_groups(model, memory_learning_rate=1e-4)) == (usual[0], 1e-4)
