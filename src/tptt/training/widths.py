"""How wide each layer's memory is: wide where the base's predictions need what lies far back."""

from __future__ import annotations

from collections.abc import Sequence

from tptt.evaluation import mag_weight
from tptt.modeling import TpttModel
from tptt.surgery import attach_memory, detach_memory
from tptt.surgery.hooks import carriers

from .divergence import Batch, divergences, untrained

MOST = 3
"""Times the mean that a memory becomes at most: its layer's features are held at once while gradients are computed."""
_UNIT = 64  # features are given out in as many, or in sixteenths of a mean that is small


def spread_width(model: TpttModel, batches: Sequence[Batch]) -> tuple[int, ...]:
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
    modules = carriers(model)
    layers, mean, window = (
        [m._tptt.layer for m in modules],
        model.config.feature_width,
        model.config.max_self_attn_length,
    )
    now = tuple(m.liza.key_features.width for m in modules)
    if not isinstance(mean, int) or any(x != mean for x in now) or window is None:
        return now
    others = [([x for x in layers if x != n], ()) for n in layers]
    mixed = any(not m._tptt.fixed for m in modules)
    with untrained(model), mag_weight(model, 0.0 if mixed else 1.0):
        lost = divergences(model, batches, others)
    widths = shares(lost, mean)
    if widths != now:
        detach_memory(model.backbone)
        model.config.feature_width = list(widths)
        attach_memory(model.backbone, model.config.memory_config())
    return widths


def shares(weights: Sequence[float], mean: int) -> tuple[int, ...]:
    """Even widths of this ``mean`` (rounded down to what can be given out), in proportion to ``weights``; none is below one
    unit, none above `MOST` means, and what that cuts off goes to the others.

    What is left after rounding down goes where most was cut off; equal weights, or none above 0, give equal widths.
    """
    unit = max(2, min(_UNIT, mean // 16 // 2 * 2))
    count = len(weights)
    if max(weights) <= 0 or mean < 2 * unit:
        return (mean,) * count
    most = MOST * mean / unit - 1  # units beyond the one that each has
    exact, left, open_ = [0.0] * count, float(mean * count // unit - count), set(range(count))
    while open_ and left > 0:
        total = sum(max(weights[i], 0.0) for i in open_)
        part = {i: left * (max(weights[i], 0.0) / total if total > 0 else 1 / len(open_)) for i in open_}
        full = {i for i in open_ if part[i] >= most}
        for i in full or open_:
            exact[i] = min(part[i], most)
            left -= exact[i]
        open_ -= full or open_
    given = [int(x) for x in exact]
    units = mean * count // unit - count
    for i in sorted(range(count), key=lambda i: given[i] - exact[i])[: units - sum(given)]:
        given[i] += 1
    return tuple(unit * (1 + x) for x in given)
