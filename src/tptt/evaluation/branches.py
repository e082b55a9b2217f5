"""Which branch of a converted model does the work. Legend: B rows, T tokens, H heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tptt.data import RecallSampler
from tptt.hf import memories, memory_layers, memory_squares, set_mag_weight, softmax_squares
from tptt.hf.patch import weights_loaded

from .perplexity import evaluating, perplexity
from .recall import RecallScore, recall_accuracy


@dataclass(frozen=True)
class LayerUse:
    """What one layer makes of its branches.

    Args:
        mu: mean over heads and tokens.
        scale: root mean square of the memory's output over that of the softmax's; None: the layer has no softmax.
    """

    mu: float
    scale: float | None


@dataclass(frozen=True)
class BranchUse:
    """Recall and perplexity of a model with both branches, the window alone (mu = 0) and the memory alone (mu = 1).

    Args:
        layers: in layer order, with both branches.
        recall: by arm, a name of `ARMS`.
        perplexity: by arm; None where no text was given.

    A layer whose mu is fixed at 1 keeps it in every arm.
    """

    layers: tuple[LayerUse, ...]
    recall: dict[str, RecallScore]
    perplexity: dict[str, float | None]


ARMS = ("both", "window only", "memory only")
_WEIGHTS: dict[str, float | None] = {"both": None, "window only": 0.0, "memory only": 1.0}


@contextmanager
def mag_weight(model: nn.Module, weight: float | None) -> Iterator[nn.Module]:
    """Within, ``model`` has the Memory-as-Gate weight ``weight`` in every layer; None changes nothing. Afterwards each
    layer has the weight that it had."""
    if weight is None:
        yield model
        return
    before = [m.mag_weight.clone() for m in memories(model)]
    set_mag_weight(model, weight)
    try:
        yield model
    finally:
        for memory, value in zip(memories(model), before, strict=True):
            memory.mag_weight.copy_(value)
        weights_loaded(model)


def branch_use(
    model,
    recall: RecallSampler,
    length: int,
    window: int,
    rows: int = 16,
    seed: int = 0,
    text: torch.Tensor | None = None,
    arms: tuple[str, ...] | None = None,
) -> BranchUse:
    """Measure ``model`` without one or the other of its branches.

    Args:
        model: with a memory.
        recall: draws the rows that ask for facts.
        length: tokens of such a row.
        window: a fact stated more tokens back counts as beyond the window.
        rows, seed: how many rows are drawn, and from where.
        text: rows [N, T] whose perplexity is measured too.
        arms: names of `ARMS`; None is all of them, or "both" alone where mu is fixed at 1 in every layer.

    Raises:
        ValueError: the model carries no memory, or an unknown arm.
    """
    if not memories(model):
        raise ValueError(f"{type(model).__name__} carries no memory, so it has no branches to compare")
    if arms is None:
        arms = ARMS if any(not x.mu_fixed for x in memory_layers(model)) else ARMS[:1]
    if unknown := [a for a in arms if a not in _WEIGHTS]:
        raise ValueError(f"unknown arm {', '.join(unknown)}; valid are {', '.join(ARMS)}")
    scores, losses = {}, {}
    for arm in arms:
        with mag_weight(model, _WEIGHTS[arm]):
            scores[arm] = recall_accuracy(model, recall, length, window, rows, seed)
            losses[arm] = None if text is None else perplexity(model, text)
    ids = recall.draw(2, length, torch.Generator().manual_seed(seed)).input_ids if text is None else text[:2]
    return BranchUse(layer_use(model, ids), scores, losses)


def layer_use(model, ids: torch.Tensor) -> tuple[LayerUse, ...]:
    """Mean mu and relative size of the memory in each layer, on ``ids`` [B, T]."""
    found = memories(model)
    inputs: dict[int, torch.Tensor] = {}
    handles = [
        m.mix_gate.register_forward_pre_hook(lambda module, args, i=i: inputs.__setitem__(i, args[0]))
        for i, m in enumerate(found)
    ]
    try:
        with evaluating(model):
            with softmax_squares(model) as of_softmax, memory_squares(model) as of_memory:
                model(input_ids=ids.to(model.device), use_cache=False)
            mus = [float(m.mu(inputs[i]).mean()) for i, m in enumerate(found)]
    finally:
        for handle in handles:
            handle.remove()
    scales = [
        float((m.mean() / s.mean().clamp_min(1e-12)).sqrt()) if layer.has_softmax else None
        for layer, m, s in zip(memory_layers(model), of_memory, of_softmax, strict=True)
    ]
    return tuple(LayerUse(mu, scale) for mu, scale in zip(mus, scales, strict=True))
