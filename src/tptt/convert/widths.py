"""How wide each layer's memory is: wide where the base's predictions need what lies far back."""

from __future__ import annotations

from collections.abc import Sequence

from tptt.config import MemoryConfig
from tptt.evaluation import mag_weight
from tptt.hf import attach_memory, detach_memory, memory_layers
from tptt.hf.configuration import TpttConfig
from tptt.hf.model import TpttModel
from tptt.processes import agreed

from .divergence import Batch, divergences, untrained

MOST = 3
"""Times the mean that a memory becomes at most: its layer's features are held at once while gradients are computed."""
_UNIT = 64  # features are given out in as many, or in sixteenths of a mean that is small


def allocate_widths(model: TpttModel, batches: Sequence[Batch]) -> tuple[int, ...]:
    """Give the memories of ``model`` new widths, in proportion to KL(base || base with a window in that layer alone).

    Their mean stays ``model.config.feature_width``, and with it the size of all states together. The memories are attached
    anew: to be called before they are calibrated or trained. ``model.config`` then names the widths.

    Args:
        model: not trained yet, with one ``feature_width`` for all layers. Nothing changes where widths have been named, or
            where nothing lies beyond a window (there is none, or the rows are no longer).
        batches: ``input_ids`` [B, T] and perhaps ``loss_weights`` [B, T]: plain text says enough. One forward pass of a
            batch per layer.

    Returns:
        the width of each memory, in layer order.
    """
    carrying = memory_layers(model)
    now = tuple(x.memory.key_features.width for x in carrying)
    if not can_allocate_widths(model.config):
        return now
    layers = [x.layer for x in carrying]
    others = [([x for x in layers if x != n], ()) for n in layers]
    mixed = any(not x.mu_fixed for x in carrying)
    with untrained(model), mag_weight(model, 0.0 if mixed else None):
        lost = divergences(model, batches, others)
    widths = agreed(shares(lost, model.config.feature_width))
    if widths != now:
        detach_memory(model.backbone)
        model.config.feature_width = list(widths)
        attach_memory(model.backbone, model.config.memory_config())
    return widths


def can_allocate_widths(config: MemoryConfig | TpttConfig) -> bool:
    """Whether ``config`` has widths, leaves them open, and bounds what is seen without a memory."""
    return (
        config.feature_map == "fourier"
        and isinstance(config.feature_width, int)
        and config.max_self_attn_length is not None
    )


def shares(weights: Sequence[float], mean: int) -> tuple[int, ...]:
    """Even widths of this ``mean`` (rounded down to what can be given out), in proportion to ``weights``; none is below one
    unit, none above `MOST` means, and what that cuts off goes to the others.

    What is left after rounding down goes where most was cut off; equal weights, or none above 0, give equal widths.
    """
    unit = max(2, min(_UNIT, mean // 16 // 2 * 2))
    weights, count = [max(x, 0.0) for x in weights], len(weights)
    if not any(weights) or mean < 2 * unit:
        return (mean,) * count
    units, most = mean * count // unit - count, MOST * mean / unit - 1  # beyond the one that each has
    exact, left, rest = [0.0] * count, float(units), set(range(count))
    while rest and left > 0:
        total = sum(weights[i] for i in rest)
        part = {i: left * (weights[i] / total if total > 0 else 1 / len(rest)) for i in rest}
        settled = {i for i in rest if part[i] >= most} or rest  # first those that are cut off, then all others
        for i in settled:
            exact[i] = min(part[i], most)
            left -= exact[i]
        rest = rest - settled
    given = [int(x) for x in exact]
    for i in sorted(range(count), key=lambda i: given[i] - exact[i])[: units - sum(given)]:
        given[i] += 1
    return tuple(unit * (1 + x) for x in given)
