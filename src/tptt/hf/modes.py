"""Training and eval mode of a model's parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` is in eval mode. Afterwards every submodule is in the mode that it was in, which need not be
    that of
    the whole model: a frozen part may stay in eval mode while the rest trains."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
