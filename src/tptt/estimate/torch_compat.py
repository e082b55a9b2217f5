"""The names that the dry run needs and that torch may change without notice; nowhere else in estimate stands a private
name of torch.

What is missing raises `UnsupportedTorchError` when a dry run asks for it: a number that was counted in part would be
wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils import flop_counter

Formula = Callable[..., int]
"""Operations of a call of one operator, from the shapes of its arguments and ``out_shape``."""


class UnsupportedTorchError(RuntimeError):
    """The installed torch lacks a name that the dry run needs."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"torch {torch.__version__} has no {name}, which a dry run counts with: install a version in the range "
            "that tptt names, or leave --dry-run out"
        )


def fake_tensors() -> AbstractContextManager[Any]:
    """Within, operations compute shapes and no values, on top of tensors of the meta device. A model asks fake tensors
    for no values, such as whether rows are packed."""
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError as error:
        raise UnsupportedTorchError("torch._subclasses.fake_tensor.FakeTensorMode") from error
    return FakeTensorMode(allow_non_fake_inputs=True)


def storage_id(tensor: torch.Tensor) -> int:
    """A number of the storage behind ``tensor``, also of one that holds nothing; unique while the storage lives."""
    storage = tensor.untyped_storage()
    if not hasattr(storage, "_cdata"):
        raise UnsupportedTorchError("UntypedStorage._cdata")
    return storage._cdata


def expert_products() -> tuple[Any, ...]:
    """The functions that multiply the tokens of each expert, [S, K] and [E, K, N] -> [S, N]; on the meta device they
    take bfloat16 alone."""
    found = (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None))
    return tuple(f for f in found if f is not None)


def _solve_formula(a_shape, b_shape, *args, left: bool = True, out_shape=None, **kwargs) -> int:
    """Substitution in triangles: half of a product with the matrix [..., n, n]."""
    count, size = 1, a_shape[-1]
    for n in b_shape:
        count *= n
    return count * size


def _formulas() -> dict[Any, Formula]:
    """Torch's formulas, and those of what it knows none of: in-place products, and triangular solves."""
    aten = torch.ops.aten
    try:
        known = dict(flop_counter.flop_registry)
        added = {aten.baddbmm_: known[aten.baddbmm], aten.addmm_: known[aten.addmm]}
        solve = {aten.linalg_solve_triangular: flop_counter.shape_wrapper(_solve_formula)}
    except (AttributeError, KeyError) as error:
        raise UnsupportedTorchError(f"torch.utils.flop_counter with {error}") from error
    return known | added | solve


@contextmanager
def operations_counted(more: Mapping[Any, Formula] | None = None) -> Iterator[Counter[torch.dtype]]:
    """Within, torch's `FlopCounterMode` counts the floating-point operations of matrix products, by the dtype they are
    computed in. The counter that this gives is filled as they are called.

    Args:
        more: formulas of further operators, each from the call's own arguments and ``out_val``.

    Raises:
        UnsupportedTorchError: this torch's counter does not hand over the tensors that say the dtype.
    """
    found: Counter[torch.dtype] = Counter()

    def by_dtype(formula: Formula) -> Formula:
        def count(*args, out_val=None, **kwargs) -> int:
            if not isinstance(args[0], torch.Tensor):
                raise UnsupportedTorchError("FlopCounterMode whose formulas may ask for tensors")
            operations = int(formula(*args, out_val=out_val, **kwargs))
            found[args[0].dtype] += operations
            return operations

        count._get_raw = True  # type: ignore[attr-defined] # the tensors themselves, not their shapes
        return count

    mapping = {operator: by_dtype(f) for operator, f in (_formulas() | dict(more or {})).items()}
    with flop_counter.FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        yield found
    if found.total() != counter.get_total_flops():
        raise UnsupportedTorchError("FlopCounterMode that counts what its formulas say")
