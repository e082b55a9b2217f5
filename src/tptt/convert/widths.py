"""How wide each layer's memory is: wide where the base's layers depend on what lies beyond the window."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tptt.config import MemoryConfig
from tptt.evaluation.perplexity import evaluating
from tptt.hf import memory_layers, window_changes
from tptt.processes import agreed
from tptt.progress import report_progress

from .divergence import Batch, untrained
from .windowed import windowed

MOST = 3
"""Times the mean that a memory becomes at most: its layer's features are held at once while gradients are computed."""
_UNIT = 64  # features are given out in as many, or in sixteenths of a mean that is small


def allocate_widths(base: nn.Module, config: MemoryConfig, batches: Sequence[Batch]) -> dict[int, int] | None:
    """The feature width of each memory that ``config`` will give ``base``, {layer number: width}.

    Widths are in proportion to `dependence`, and their mean is ``config.feature_width``, so that all states together
    stay as large. ``feature_width=list(widths.values())`` of a configuration takes them.

    Args:
        base: as it was loaded, without a memory.
        config: with one ``feature_width`` for all layers.
        batches: ``input_ids`` [B, T]; plain text says enough.

    Returns:
        None: widths have been named, there is no window, or no row is longer than the window.
    """
    width, window = config.feature_width, config.window
    if not isinstance(width, int) or window is None or not can_allocate_widths(config):
        return None
    if max((batch["input_ids"].shape[1] for batch in batches), default=0) <= window:
        return None
    with windowed(base, config):
        found = dependence(base, batches)
    return dict(zip(found, agreed(shares(list(found.values()), width)), strict=True))


def dependence(model: nn.Module, batches: Sequence[Batch]) -> dict[int, float]:
    """By how much a window changes each layer's output, {layer number: |change|^2 / |output|^2, mean over tokens}.

    All layers are measured in one pass of the base, each on the base's own hidden states; it costs about two. What
    counts in the end is KL(base || base with a window in that layer alone), which takes a pass for each layer: the two
    give nearly the same widths (`benchmarks.widths` prints both).

    Args:
        model: carries a window (`windowed`, or a converted model); its base must not train.
        batches: ``input_ids`` [B, T].
    """
    tokens = 0
    device = next(model.parameters()).device
    rows = sum(len(batch["input_ids"]) for batch in batches)
    progressing = report_progress("measuring widths", rows, "rows")
    with progressing as progress, evaluating(model), untrained(model), window_changes(model) as found:
        for batch in batches:
            ids = batch["input_ids"].to(device)
            model(input_ids=ids, use_cache=False)
            tokens += ids.numel()
            progress.advance(len(ids))
    return {x.layer: found.get(x.layer, 0.0) / tokens for x in memory_layers(model)}


def can_allocate_widths(config: MemoryConfig) -> bool:
    """Whether ``config`` has widths, leaves them open, and bounds what is seen without a memory."""
    return (
        config.feature_map == "fourier"
        and isinstance(config.feature_width, int)
        and config.max_self_attn_length is not None
    )


def shares(weights: Sequence[float], mean: int) -> tuple[int, ...]:
    """Even widths of this ``mean`` (rounded down to what can be given out), in proportion to ``weights``; none is below
    one unit, none above `MOST` means, and what that cuts off goes to the others.

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
