"""The invariants of `tptt.evaluation.verify` as assertions."""

from tptt.evaluation import CHECKS, verify
from tptt.evaluation.verify import TOLERANCE


def assert_invariants(model, checks=tuple(CHECKS)):
    """Every one of ``checks`` holds for ``model``."""
    for check, found in verify(model, checks).items():
        assert isinstance(found, float), f"{check}: {found!r}"
        assert found <= TOLERANCE, f"{check}: {found:.1e}"
