"""The converted model of a run on the meta device, and what is counted on it, once for all devices."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from transformers import PreTrainedConfig

from tptt.convert.layer_choice import LayerChoice
from tptt.convert.layer_search import count_layers
from tptt.evaluation import layer_kv
from tptt.hf.cache_formula import CacheFormula
from tptt.hf.compat import attention_implementation
from tptt.hf.configuration import TpttConfig
from tptt.hf.meta_model import skeleton
from tptt.run.base import base_config, conversion_config, decided
from tptt.run.options import RunOptions
from tptt.train.auto_layers import check_auto, measured_config
from tptt.train.base import row_length

from .meta_model import cast, on_meta, saved_for_backward
from .operations import OperationCounter, Operations, Step
from .parameters import count_parameters

_FEW = 256
"""Tokens of a row whose activations are counted: fused attention keeps as much of every further token."""


class Survey:
    """The converted model of some options without weights, and what is counted on it.

    ``options`` are those of the run with what it decides before it begins, its window.

    Args:
        options: of the run. Those of the training, ``dtype`` and ``quantization`` do not matter here.

    Raises:
        OSError: there is no configuration of the base.
        ValueError: base and options do not fit each other.
    """

    def __init__(self, options: RunOptions) -> None:
        base = base_config(options)
        self.options = options = decided(options, base)
        self.own_dtype: torch.dtype = base.dtype or torch.float32
        config, self.choice = counted_config(options, base, self.own_dtype)
        self.model = skeleton(config, self.own_dtype, options.attn_implementation).train()
        self.base = self.model.inner.config
        self.parameters = count_parameters(self.model)
        self._saved: dict[tuple[int, int, int], int] = {}
        self._caches: dict[torch.dtype, tuple[CacheFormula, CacheFormula]] = {}

    @property
    def is_eager(self) -> bool:
        """Whether attention keeps the matrices of its weights."""
        return attention_implementation(self.base) == "eager"

    def saved(self, dtype: torch.dtype, rows: int, length: int) -> int:
        """Bytes that a forward pass of ``rows`` x ``length`` tokens in ``dtype`` keeps for the backward pass."""
        few = length if self.is_eager else min(length, _FEW)
        key = dtype.itemsize, max(1, rows * length // few), few
        if key not in self._saved:
            cast(self.model, dtype)
            self._saved[key] = saved_for_backward(self.model, *key[1:])
        kept = self._saved[key] * (rows * length) // (key[1] * few)
        # fused attention keeps its mask as a bias in ``dtype``, [T, T] for each row and each layer that has one
        return kept + dtype.itemsize * rows * self._masked(length)

    def _masked(self, length: int) -> int:
        """Numbers in the masks of fused attention of one row."""
        return self._counter.counted(1, length, train=False).masked

    @cached_property
    def _counter(self) -> OperationCounter:
        return OperationCounter(self.model)

    def operations(self, step: Step) -> Operations:
        """The floating-point operations per token of a training with such steps."""
        return self._counter.per_token(step)

    def caches(self, dtype: torch.dtype) -> tuple[CacheFormula, CacheFormula]:
        """What the caches of base and converted model hold where they compute in ``dtype``."""
        if dtype not in self._caches:
            cast(self.model, dtype)
            with on_meta():
                self._caches[dtype] = CacheFormula.of(self.model, base=True), CacheFormula.of(self.model)
        return self._caches[dtype]


def counted_config(
    options: RunOptions, base: PreTrainedConfig, dtype: torch.dtype
) -> tuple[TpttConfig, LayerChoice | None]:
    """The converted model's configuration; with ``layers="auto"`` as many layers as the budget leaves get a memory, and
    how they were counted comes along.

    Raises:
        ValueError: base and options do not fit each other.
    """
    config, settings = conversion_config(options, base), options.training
    if not check_auto(config, settings):
        return config, None
    assert settings.kv_budget is not None
    length, only = row_length(settings, base), config.memory_only_layers
    model, counted_at = skeleton(measured_config(config, length), dtype), settings.kv_length or length
    with on_meta():
        kinds = layer_kv(model, counted_at)
    choice = count_layers(model, kinds, settings.kv_budget, counted_at, only)
    config = copy.deepcopy(config)
    config.layers, config.memory_only_layers = choice.memory, choice.memory_only
    return config, choice
