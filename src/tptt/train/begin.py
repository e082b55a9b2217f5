"""The beginning of a conversion: load the base, decide layers and widths on it, attach the memory, calibrate it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tptt.convert.divergence import untrained
from tptt.convert.layer_choice import LayerChoice
from tptt.convert.layer_search import choose_layers, passes
from tptt.convert.widths import allocate_widths, can_allocate_widths
from tptt.convert.windowed import windowed
from tptt.data import pack_rows
from tptt.hf import calibrate
from tptt.hf.base_model import load_base
from tptt.hf.configuration import TpttConfig
from tptt.hf.model import TpttModel
from tptt.processes import agreed, devices, gpu
from tptt.progress import report_progress

from .auto_layers import LAYER_ROWS, check_auto, first_rows, measured_config
from .base import check_reach
from .corpus import Corpus
from .settings import TrainingSettings
from .window import WITHOUT_WINDOW, is_without_window

logger = logging.getLogger("tptt")
_ROWS = 4
"""Rows of text that widths and start values are measured on, at most."""
_SHARE = 0.1
"""Of a run's time that measuring widths may take."""
_TRAINING_PASSES, _MEASURING_PASSES = 3, 2
"""Forward passes of the base that a row takes: in a training step (its backward pass counts two); to measure widths."""
EQUAL_WIDTHS = (
    "allocate_widths: all memories are equally wide, because measuring one row would take more than a tenth of the "
    "time of so short a run"
)


@dataclass(frozen=True)
class Begun:
    """A converted model before its first training step.

    Args:
        model: it.
        choice: with ``layers="auto"`` how its layers were chosen.
        warnings: what was logged as a warning.
    """

    model: TpttModel
    choice: LayerChoice | None
    warnings: list[str]


def begin_conversion(
    config: TpttConfig, corpus: Corpus, settings: TrainingSettings, seq_len: int, **model_options
) -> Begun:
    """The converted model of ``config``, ready to be trained on ``corpus``.

    The memory is attached once, when layers and widths are decided, and calibrated once, on the text.

    Args:
        config: base, memory and LoRA, with a window that is decided. Its layers and widths become those decided here.
        corpus: the text. Only its training part is read.
        settings: of the training. Its ``seed`` draws LoRA's start; the random state of the process stays as it is.
        seq_len: tokens of a training row.
        model_options: go to `TpttModel` (``dtype``, ``token``, ``quantization_config``, ...).

    Raises:
        OSError: the base was not found.
        ValueError: base, configuration and settings do not fit each other.
    """
    auto = check_auto(config, settings)
    with report_progress(f"loading {config.base_model_name}"):
        base = load_base(config, **model_options)
        check_reach(base, seq_len * settings.tbptt_chunks)
        device = gpu()
        if device is not None and not hasattr(base, "hf_device_map"):
            base.to(device)
    warnings: list[str] = []
    if is_without_window(config):
        _warn(warnings, WITHOUT_WINDOW)
    choice = _decide_layers(base, config, corpus, settings, seq_len, warnings) if auto else None
    if settings.allocate_widths and not _decide_widths(base, config, corpus, settings, seq_len):
        _warn(warnings, EQUAL_WIDTHS)
    with _seeded(settings.seed):
        model = TpttModel(config, base=base)
    if device is not None and not hasattr(base, "hf_device_map"):
        model.to(device)
    with report_progress("calibrating the memory"):
        calibrate(model.backbone, _text_rows(corpus, seq_len, _ROWS).to(model.device), seq_len)
    return Begun(model, choice, warnings)


def _warn(warnings: list[str], text: str) -> None:
    logger.warning(text)
    warnings.append(text)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within, torch draws from ``seed``; what it drew from before goes on afterwards."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _text_rows(corpus: Corpus, seq_len: int, rows: int) -> torch.Tensor:
    """The first ``rows`` rows [N, seq_len] of the training text, fewer where it is shorter."""
    return pack_rows(corpus.stream[: rows * seq_len], seq_len)


def _decide_layers(
    base: Any, config: TpttConfig, corpus: Corpus, settings: TrainingSettings, seq_len: int, warnings: list[str]
) -> LayerChoice:
    """Choose the layers that keep their whole context; ``config`` then names those that have a memory."""
    assert settings.kv_budget is not None
    batches, length = first_rows(corpus, settings, seq_len), settings.kv_length or seq_len
    with windowed(base, measured_config(config, seq_len).memory_config()), untrained(base):
        asked = settings.kv_budget, length, config.memory_only_layers
        share = LAYER_ROWS * passes(base, *asked) / (_TRAINING_PASSES * _rows_trained(settings, seq_len))
        if share > _SHARE:
            _warn(warnings, f"layers: auto takes about {share:.0%} of the time that the training itself takes")
        choice = choose_layers(base, batches, *asked)
    choice = agreed(choice)
    config.layers, config.memory_only_layers = choice.memory, choice.memory_only
    return choice


def _decide_widths(base: Any, config: TpttConfig, corpus: Corpus, settings: TrainingSettings, seq_len: int) -> bool:
    """Let ``config`` name the width of each memory, where it leaves them open. False: the run is too short for that."""
    if not can_allocate_widths(config.memory_config()):
        return True
    rows = rows_to_measure(settings, seq_len)
    if rows == 0:
        return False
    batches = [{"input_ids": row[None]} for row in _text_rows(corpus, seq_len, rows)]
    if (widths := allocate_widths(base, config.memory_config(), batches)) is not None:
        config.feature_width = list(widths.values())
    return True


def rows_to_measure(settings: TrainingSettings, seq_len: int) -> int:
    """Rows of ``seq_len`` tokens on which widths are measured: 4, fewer where these would take more than a tenth of the
    time of training; 0: one would."""
    return min(_ROWS, int(_SHARE * _TRAINING_PASSES * _rows_trained(settings, seq_len) / _MEASURING_PASSES))


def _rows_trained(settings: TrainingSettings, seq_len: int) -> int:
    """Rows of ``seq_len`` tokens that each device is trained on."""
    return settings.steps(seq_len, devices()) * settings.rows_per_step() * settings.tbptt_chunks
