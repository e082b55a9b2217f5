"""Start values measured on the model itself."""

from __future__ import annotations

import logging

import torch
from torch import nn

from .far_rotary import far_maps, rotary_turns
from .modes import in_eval_mode
from .slots import memory_of, patched_attention, slot_of
from .teacher import both_branches, projections, softmax_squares

logger = logging.getLogger("tptt")
_WINDOWS = 8  # of a sequence whose length nobody says


@torch.no_grad()
def calibrate(
    model: nn.Module, input_ids: torch.Tensor | None = None, length: int | None = None, **inputs
) -> nn.Module:
    """Start each memory from what its layer does on ``input_ids`` [B, T].

    Feature maps that have not been trained yet begin from the base's mean scores beyond the window
    (`tptt.hf.far_rotary`). Where the memory's output is normalised (linear attention), ``output_scale`` [H, V] becomes
    the root mean square of the softmax branch, so that both branches have the same size.

    Args:
        model: carries memories.
        input_ids: tokens to measure on.
        length: of the sequences to come, in tokens: scores are averaged from the window to there; None is 8 windows.
        inputs: go to the model as they are (a vision model's ``pixel_values``).

    Returns:
        ``model``.
    """
    modules = patched_attention(model)
    if input_ids is not None:
        inputs["input_ids"] = input_ids
    memories = [memory_of(m) for m in modules]
    if not any(m.config.bidirectional for m in memories):
        inputs["use_cache"] = False
    weights = [m.mag_weight.clone() for m in memories]
    try:
        for memory in memories:  # what reaches a layer must not depend on how the memories below it have begun
            memory.mag_weight.zero_()
        with (
            in_eval_mode(model),
            both_branches(model),
            softmax_squares(model) as squares,
            projections(model) as projected,
            rotary_turns(model) as turns,
        ):
            model(**inputs)
    finally:
        for memory, weight in zip(memories, weights, strict=True):
            memory.mag_weight.copy_(weight)
    trained = []
    for module, memory, square, (q, k) in zip(modules, memories, squares, projected, strict=True):
        if memory.normalised:
            scale = memory.output_scale
            scale.copy_(square.sqrt().clamp_min(1e-3).view_as(scale))
        window = memory.config.window
        far = length or (_WINDOWS * window if window else q.shape[1])
        near = window or max(1, far // _WINDOWS)
        if not memory.begin_from(*far_maps(turns.get(module), q, k, near, max(near + 1, far), memory.num_states)):
            trained.append(slot_of(module).layer)
    if trained:
        logger.warning("calibrate: the feature maps of layers %s have been trained and stay as they are", trained)
    return model
