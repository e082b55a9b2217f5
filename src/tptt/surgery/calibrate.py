"""Start values measured on the model itself."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .layouts import find_attention


@torch.no_grad()
def calibrate(model: nn.Module, input_ids: torch.Tensor) -> nn.Module:
    """Set each memory's ``output_scale`` [H, D] to the root mean square of its softmax branch on ``input_ids`` [B, T].

    The memory's output is normalised, so that both branches then have the same size. Returns ``model``.
    """
    squares: dict[nn.Module, torch.Tensor] = {}
    handles = []

    def measure(memory, child, args):
        squares[memory] = args[0].float().pow(2).mean((0, 1))

    for _, module, sizes in find_attention(model):
        output = getattr(module, sizes.layout.output)
        # before the hook that mixes: the softmax branch alone is to be measured
        handles.append(output.register_forward_pre_hook(partial(measure, module.liza), prepend=True))
    training = model.training
    model.eval()
    try:
        model(input_ids=input_ids, use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for memory, square in squares.items():
        memory.output_scale.copy_(square.sqrt().clamp_min(1e-3).view_as(memory.output_scale))
    return model
