"""Start values measured on the model itself."""

from __future__ import annotations

import torch
from torch import nn

from .base_view import softmax_squares
from .hooks import carriers
from .softmax import with_softmax, without_softmax


@torch.no_grad()
def calibrate(model: nn.Module, input_ids: torch.Tensor | None = None, **inputs) -> nn.Module:
    """Set each memory's ``output_scale`` [H, V] to the root mean square of its softmax branch on ``input_ids`` [B, T].

    The memory's output is normalised, so that both branches then have the same size. ``inputs`` go to the model as they
    are (a vision model's ``pixel_values``). Returns ``model``.
    """
    modules = carriers(model)
    alone = [m for m in modules if m._tptt.alone]
    for module in alone:
        with_softmax(module)
    if input_ids is not None:
        inputs["input_ids"] = input_ids
    if not any(m.liza.config.bidirectional for m in modules):
        inputs["use_cache"] = False
    training = model.training
    model.eval()
    try:
        with softmax_squares(model) as squares:
            model(**inputs)
    finally:
        model.train(training)
        for module in alone:
            without_softmax(module)
    for module, square in zip(modules, squares, strict=True):
        scale = module.liza.output_scale
        scale.copy_(square.sqrt().clamp_min(1e-3).view_as(scale))
    return model
