"""A base and a text become a converted, trained, saved model in one call."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from tptt.convert.choose_layers import LayerChoice
from tptt.convert.widths import allocate_widths
from tptt.data import TextSplit, pack_rows
from tptt.hf import calibrate, memories
from tptt.hf.configuration import TpttConfig, base_error
from tptt.hf.model import TpttModel
from tptt.inference.session import position_limit
from tptt.processes import devices, gpu, is_first, wait

from .allocator import keep_freed_memory
from .auto_layers import check_auto, measured_config, resumed_config, settle_layers
from .callbacks import AdjustMaGWeightCallback
from .checkpoints import last_checkpoint
from .corpus import Corpus
from .probe import BranchProbe, ProbeResult, diverged
from .settings import TrainingSettings
from .trainer import ConversionTrainer

LONGEST = 512  # tokens of a row where nobody says and the base could read more
_CALIBRATED_ON = 4  # rows


@dataclass
class Converted:
    """What `convert_and_train` made and saw: Trainer's log history, the looks at the branches, what was wrong, and with
    ``layers="auto"`` which layers it chose and why (None where a resumed run had chosen them before)."""

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
        """Whether the last look found a model that computes numbers no longer."""
        return bool(self.probe_results) and diverged(self.probe_results[-1].use)


def row_length(settings: TrainingSettings, base_config) -> int:
    """Tokens of a training row."""
    return settings.seq_len or min(getattr(base_config, "max_position_embeddings", None) or LONGEST, LONGEST)


def load_tokenizer(config: TpttConfig, **options):
    """The base's tokenizer.

    Raises:
        OSError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(config.base_model_name, revision=config.base_model_revision, **options)
    except (OSError, ValueError) as error:
        raise base_error(str(config.base_model_name), error) from error


def check_reach(model, tokens: int) -> None:
    """Raises ValueError where a base with a table of positions cannot read ``tokens`` tokens."""
    limit = position_limit(model)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"the base has positions for {limit} tokens, rows of {tokens} (seq_len * tbptt_chunks) are too long"
        )


def begin_memory(model: TpttModel, corpus: Corpus, settings: TrainingSettings, length: int) -> None:
    """Measure on the text that ``model`` will be trained on how wide its memories are and where they start."""
    few = pack_rows(corpus.stream[: _CALIBRATED_ON * length], length)
    if settings.allocate_widths:
        allocate_widths(model, [{"input_ids": row[None]} for row in few])
    calibrate(model.backbone, few.to(model.device), length)


def convert_and_train(
    config: TpttConfig, data: str | TextSplit | Corpus | None = None, settings: TrainingSettings | None = None,
    out: str | Path | None = None, callbacks: Sequence[TrainerCallback] = (), arguments: dict[str, Any] | None = None,
    resume: bool = False, **model_options,
) -> Converted:  # fmt: skip
    """Give the base of ``config`` a memory and train it on ``data``.

    Trainer does the work, so that accelerate, FSDP and reporting integrations come along. The base is its own teacher
    where the settings ask for one. A row is text, or states facts and asks for them again (`tptt.data.FORMATS`): a memory
    recalls only what its training asked it to recall. Under torchrun or accelerate every process calls this; the first one
    writes.

    Args:
        config: base, memory and LoRA. With ``layers="auto"`` the layers that keep their whole context are chosen under
            ``settings.kv_budget``, and the configuration that is saved names the others.
        data: text file, folder, table, data set of the hub (see `tptt.data.load_text`), a `TextSplit`, a `Corpus`, or
            None for the running Python's documentation.
        settings: how it is trained; None is the default recipe.
        out: folder for the model and its tokenizer, with Trainer's own checkpoints in ``trainer``; None saves nothing.
        callbacks: further ones.
        arguments: of `transformers.TrainingArguments`, over what the settings give.
        resume: go on from Trainer's last complete checkpoint in ``out``, where there is one.
        model_options: go to `TpttModel` (``dtype``, ``token``, ``quantization_config``, ...).

    Raises:
        OSError: base or data were not found.
        ValueError: base, text and settings do not fit each other.
    """
    settings, config = settings or TrainingSettings(), copy.deepcopy(config)
    auto = check_auto(config, settings)
    last = last_checkpoint(Path(out) / "trainer") if resume and out is not None else None
    if last is not None:
        config, auto = resumed_config(config, last), False
    tokenizer = load_tokenizer(config)
    torch.manual_seed(settings.seed)
    length = row_length(settings, config.text_config)
    model = TpttModel(measured_config(config, length) if auto else config, **model_options)
    check_reach(model, length * settings.tbptt_chunks)
    if isinstance(data, Corpus):
        corpus = data
    else:
        corpus = Corpus.of(tokenizer, data, settings.tokens, length * settings.tbptt_chunks, settings.seed)
    if (device := gpu()) is not None and not hasattr(model, "hf_device_map"):
        model.to(device)
    choice = settle_layers(model, config, corpus, settings, length) if auto else None
    begin_memory(model, corpus, settings, length)
    converted = Converted(model, tokenizer, corpus, choice=choice)
    probe = BranchProbe.of(model, corpus, settings, length)
    start = time.perf_counter()
    converted.history = train(model, corpus, settings, length, out, [probe, *callbacks], arguments, resume)
    converted.seconds = time.perf_counter() - start
    converted.probe_results, converted.warnings = probe.probe_results, probe.warnings
    if out is not None:
        weights = model.whole_state_dict()  # where they are sharded, each process has its part
        if is_first():
            model.save_pretrained(out, state_dict=weights)
            tokenizer.save_pretrained(out)
    wait()
    return converted


def train(
    model: TpttModel, corpus: Corpus, settings: TrainingSettings, length: int, out: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (), arguments: dict[str, Any] | None = None, resume: bool = False,
) -> list[dict]:  # fmt: skip
    """Train ``model`` in place, with a memory or with its window alone; returns Trainer's log history.

    The arguments are those of `convert_and_train`; ``length`` is that of a row (or of a piece of it, with ``tbptt_chunks``).
    """
    if not torch.cuda.is_available():
        keep_freed_memory()
    count = devices()
    steps = settings.steps(length, count)
    rows = corpus.rows(
        settings,
        length * settings.tbptt_chunks,
        steps * settings.per_device_train_batch_size * settings.gradient_accumulation_steps * count,
    )
    callbacks = list(callbacks)
    if settings.mag_weight_start is not None and memories(model):
        ramp = min(settings.mag_weight_steps, steps)
        callbacks.append(AdjustMaGWeightCallback(model, settings.mag_weight_start, model.config.mag_weight, ramp))
    bf16 = settings.bf16
    if bf16 is None:
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    with tempfile.TemporaryDirectory() if out is None else nullcontext(str(Path(out) / "trainer")) as folder:
        options: dict[str, Any] = {
            "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": settings.per_device_train_batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps, "lr_scheduler_type": "cosine",
            "warmup_steps": min(settings.warmup_steps, steps // 2), "max_grad_norm": 1.0, "seed": settings.seed,
            "logging_steps": max(1, steps // 100), "save_strategy": "no", "report_to": "none", "bf16": bf16,
            "gradient_checkpointing": settings.gradient_checkpointing, "remove_unused_columns": False,
            "dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": not torch.cuda.is_available(),
        }  # fmt: skip
        trainer = ConversionTrainer(
            model=model, args=TrainingArguments(**options | (arguments or {})), train_dataset=rows, callbacks=callbacks,
            write_gate_weight=settings.write_gate_weight, fact_weight=settings.fact_weight, write_gate_steps=settings.write_gate_steps, write_gate_floor=settings.write_gate_floor, kl_weight=settings.kl_weight, attention_transfer_weight=settings.attention_transfer_weight, long_context_weight=settings.long_context_weight, tbptt_chunks=settings.tbptt_chunks, rates=(settings.learning_rate, settings.memory_learning_rate),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if resume else None)
        trainer.accelerator.unwrap_model(
            trainer.model_wrapped, keep_fp32_wrapper=False
        )  # else it computes on under autocast
    return trainer.state.log_history
