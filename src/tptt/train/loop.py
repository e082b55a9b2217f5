"""A base and a text become a converted, trained, saved model in one call."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from tptt.convert.layer_choice import LayerChoice
from tptt.data import TextSplit
from tptt.hf import memories
from tptt.hf.configuration import TpttConfig
from tptt.hf.model import TpttModel
from tptt.processes import devices, is_first, wait
from tptt.progress import report_progress

from .arguments import training_arguments
from .auto_layers import check_auto, resumed_config
from .base import load_tokenizer, row_length
from .begin import begin_conversion
from .callbacks import AdjustMaGWeightCallback
from .checkpoints import last_checkpoint
from .corpus import Corpus
from .probe import BranchProbe, ProbeResult, diverged
from .report_steps import ReportSteps
from .settings import TrainingSettings
from .trainer import ConversionTrainer
from .window import decided_window

CHECKPOINTS = "trainer"
"""Folder of Trainer's checkpoints in the output folder."""


@dataclass
class Converted:
    """What `convert_and_train` made and saw.

    Args:
        model, tokenizer, corpus: what was trained, and on what.
        history: Trainer's log history.
        probe_results: what the probes found; empty with ``probe_steps=None``.
        warnings: what is not as it should be: about the configuration, and what the probes found.
        choice: with ``layers="auto"`` which layers were chosen and why; None where a resumed run had chosen them
            before.
        seconds: duration of the training.
    """

    model: TpttModel
    tokenizer: Any
    corpus: Corpus
    history: list[dict] = field(default_factory=list)
    probe_results: list[ProbeResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    choice: LayerChoice | None = None
    seconds: float = 0.0

    @property
    def diverged(self) -> bool:
        """Whether the last probe found a model whose predictions are no finite numbers."""
        return bool(self.probe_results) and diverged(self.probe_results[-1].use)


def convert_and_train(
    config: TpttConfig,
    data: str | TextSplit | Corpus | None = None,
    settings: TrainingSettings | None = None,
    output_dir: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    arguments: Mapping[str, Any] | None = None,
    resume_from_checkpoint: bool = False,
    **model_options,
) -> Converted:
    """Give the base of ``config`` a memory and train it on ``data``.

    Trainer does the work, so that accelerate, FSDP and reporting integrations come along. A row is text, or states
    facts and asks for them again (`tptt.data.FORMATS`): a memory recalls only what its training asked it to recall.
    Under torchrun or accelerate every process calls this; the first one writes.

    Args:
        config: base, memory and LoRA. What it leaves open is decided here: with ``max_self_attn_length="auto"`` the
            window (a quarter of a row, at most 512 tokens), with ``layers="auto"`` the layers that keep their whole
            context under ``settings.kv_budget``, with one ``feature_width`` the width of each memory. The saved
            configuration names them.
        data: text file, folder, table, data set of the hub (see `tptt.data.load_text`), a `TextSplit`, a `Corpus`, or
            None for the running Python's documentation.
        settings: how it is trained; None is the default recipe.
        output_dir: folder for the model and its tokenizer, with Trainer's own checkpoints in ``trainer``; None saves
            nothing.
        callbacks: further ones for Trainer.
        arguments: of `transformers.TrainingArguments`, over what the settings give.
        resume_from_checkpoint: go on from Trainer's last complete checkpoint in ``output_dir``, where there is one.
        model_options: go to `TpttModel` (``dtype``, ``token``, ``quantization_config``, ...).

    Raises:
        OSError: base or data were not found.
        ValueError: base, text and settings do not fit each other.
    """
    settings = settings or TrainingSettings()
    config, settings, seq_len = _resolved(config, settings, output_dir, resume_from_checkpoint)
    hub = {name: model_options[name] for name in ("token", "trust_remote_code") if name in model_options}
    tokenizer = load_tokenizer(config, **hub)
    longest = seq_len * settings.tbptt_chunks
    corpus = data if isinstance(data, Corpus) else Corpus.of(tokenizer, data, settings.tokens, longest, settings.seed)
    begun = begin_conversion(config, corpus, settings, seq_len, **model_options)
    converted = Converted(begun.model, tokenizer, corpus, warnings=begun.warnings, choice=begun.choice)
    probes = [] if settings.probe_steps is None else [BranchProbe.of(begun.model, corpus, settings, seq_len)]
    start = time.perf_counter()
    converted.history = train(
        begun.model, corpus, settings, seq_len, output_dir, [*probes, *callbacks], arguments, resume_from_checkpoint
    )
    converted.seconds = time.perf_counter() - start
    for probe in probes:
        converted.probe_results = probe.probe_results
        converted.warnings += probe.warnings
    if output_dir is not None:
        _save(converted, output_dir)
    wait()
    return converted


def _resolved(
    config: TpttConfig, settings: TrainingSettings, output_dir: str | Path | None, resume: bool
) -> tuple[TpttConfig, TrainingSettings, int]:
    """Configuration, settings and tokens of a row. A resumed run keeps what it decided when it began."""
    check_auto(config, settings)
    last = last_checkpoint(Path(output_dir) / CHECKPOINTS) if resume and output_dir is not None else None
    if last is not None:
        config, settings = resumed_config(config, settings, last)
    config, seq_len = copy.deepcopy(config), row_length(settings, config.text_config)
    config.max_self_attn_length = decided_window(config.memory_config(), seq_len)
    return config, settings, seq_len


def _save(converted: Converted, output_dir: str | Path) -> None:
    with report_progress("saving the model"):
        weights = converted.model.whole_state_dict()  # where they are sharded, each process has its part
        if is_first():
            converted.model.save_pretrained(output_dir, state_dict=weights)
            converted.tokenizer.save_pretrained(output_dir)


def train(
    model: TpttModel,
    corpus: Corpus,
    settings: TrainingSettings,
    seq_len: int,
    output_dir: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    arguments: Mapping[str, Any] | None = None,
    resume_from_checkpoint: bool = False,
) -> list[dict]:
    """Train ``model`` in place, with a memory or with its window alone; returns Trainer's log history.

    The arguments are those of `convert_and_train`; ``seq_len`` is the number of tokens of a row (with ``tbptt_chunks``,
    of a chunk of it). As Trainer does, this seeds the random state of the process with ``settings.seed``.
    """
    count = devices()
    steps = settings.steps(seq_len, count)
    rows = corpus.rows(settings, seq_len * settings.tbptt_chunks, steps * settings.rows_per_step(count))
    with _checkpoint_folder(output_dir) as folder, report_progress("training", steps, "steps") as progress:
        trainer = ConversionTrainer(
            model=model,
            args=training_arguments(settings, folder, steps, arguments),
            train_dataset=rows,
            callbacks=[*callbacks, *_mag_weight_ramp(model, settings, steps), ReportSteps(progress)],
            settings=settings,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if resume_from_checkpoint else None)
        # without this the model would compute on under autocast
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    return trainer.state.log_history


def _mag_weight_ramp(model: TpttModel, settings: TrainingSettings, steps: int) -> list[TrainerCallback]:
    if settings.mag_weight_start is None or not memories(model):
        return []
    length = min(settings.mag_weight_steps, steps)
    return [AdjustMaGWeightCallback(model, settings.mag_weight_start, model.config.mag_weight, length)]


@contextmanager
def _checkpoint_folder(output_dir: str | Path | None) -> Iterator[str]:
    """Trainer's folder in ``output_dir``; a temporary one where nothing is to be saved."""
    if output_dir is not None:
        yield str(Path(output_dir) / CHECKPOINTS)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder
