import pytest

from tptt.train import constant, cyclic, gradual, switch


def test_constant_never_moves():
    assert {constant(step, 0.3) for step in range(5)} == {0.3}


@pytest.mark.parametrize(("step", "value"), [(0, 0.01), (50, 0.255), (100, 0.5), (1000, 0.5)])
def test_gradual_is_a_ramp_that_ends(step, value):
    assert gradual(step, 0.01, 0.5, 100) == pytest.approx(value)


def test_gradual_meets_its_ends_exactly():
    assert gradual(0, 0.01, 0.5, 7) == 0.01
    assert gradual(7, 0.01, 0.5, 7) == 0.5


def test_gradual_can_fall():
    assert gradual(5, 1.0, 0.0, 10) == 0.5


def test_cyclic_takes_each_in_turn():
    assert [cyclic(s, (0.1, 0.2, 0.3)) for s in range(4)] == [0.1, 0.2, 0.3, 0.1]
    assert [cyclic(s, (0.1, 0.2), 2) for s in range(5)] == [0.1, 0.1, 0.2, 0.2, 0.1]


def test_switch_alternates():
    assert [switch(s, 0.0, 0.5, 2) for s in range(5)] == [0.0, 0.0, 0.5, 0.5, 0.0]
