"""A name that torch has dropped is told, and never counted around."""

import sys
from collections import Counter

import pytest
import torch
from torch.utils import flop_counter

from tptt.estimate.torch_compat import (
    UnsupportedTorchError,
    expert_products,
    fake_tensors,
    operations_counted,
    storage_id,
)


def test_products_are_counted_by_dtype():
    single, double = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5, dtype=torch.float64)
    with operations_counted() as found:
        single @ single.mT
        torch.zeros(2, 3, 5, dtype=torch.float64).baddbmm_(single.double(), double)
        torch.linalg.solve_triangular(torch.eye(4), torch.zeros(2, 4, 7), upper=True)
    assert found == Counter({torch.float32: 2 * 2 * 3 * 3 * 4 + 2 * 4 * 4 * 7, torch.float64: 2 * 2 * 3 * 4 * 5})


def test_what_computes_no_product_counts_nothing():
    with operations_counted() as found:
        torch.zeros(10).exp().sum()
    assert found.total() == 0


def test_a_counter_that_hands_over_shapes_alone_is_refused(monkeypatch):
    """As a torch would whose ``custom_mapping`` goes by another mark."""
    inner = flop_counter.FlopCounterMode.__init__

    def unmarked(formula):
        return lambda *args, **kwargs: formula(*args, **kwargs)

    def init(self, *args, custom_mapping, **kwargs):
        mapping = {operator: unmarked(formula) for operator, formula in custom_mapping.items()}
        inner(self, *args, custom_mapping=mapping, **kwargs)

    monkeypatch.setattr(flop_counter.FlopCounterMode, "__init__", init)
    refused = pytest.raises(UnsupportedTorchError, match="has no FlopCounterMode whose formulas may ask for tensors")
    with refused, operations_counted():
        torch.zeros(3, 4) @ torch.zeros(4, 3)


def test_a_counter_without_torch_s_formulas_is_refused(monkeypatch):
    monkeypatch.delattr(flop_counter, "flop_registry")
    refused = pytest.raises(UnsupportedTorchError, match="has no torch.utils.flop_counter with .*flop_registry")
    with refused, operations_counted():
        pass


def test_fake_tensors_that_have_moved_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._subclasses.fake_tensor", None)
    with pytest.raises(
        UnsupportedTorchError, match="has no torch._subclasses.fake_tensor.FakeTensorMode, which a dry run"
    ):
        fake_tensors()


def test_a_storage_has_a_number_of_its_own():
    x, y = torch.empty(3, device="meta"), torch.empty(3, device="meta")
    assert storage_id(x) == storage_id(x[1:]) != storage_id(y)


def test_products_of_experts_are_known():
    """Where torch has none of them, the meta device raises at the product itself."""
    assert expert_products() and all(callable(f) for f in expert_products())
