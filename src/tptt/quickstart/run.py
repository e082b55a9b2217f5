"""The stages of a quickstart, in order: each is a call that a user of the library would make."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tptt.assets import BASE
from tptt.config import MemoryConfig
from tptt.convert.lora import lora_config
from tptt.convert.window_only import window_alone
from tptt.evaluation import cache_growth
from tptt.evaluation.perplexity import evaluating
from tptt.hf import attach_memory, detach_memory
from tptt.hf.base_model import load_base
from tptt.hf.configuration import TpttConfig
from tptt.hf.model import TpttModel
from tptt.inference.session import position_limit
from tptt.processes import gpu
from tptt.progress import report_progress
from tptt.train import Corpus, TrainingSettings, convert_and_train, keep_freed_memory, train
from tptt.train.base import check_reach, load_tokenizer

from .measures import measure, measured_lengths, recall_by_format
from .options import QuickstartOptions, check_output
from .reload import generate_fresh
from .report import arm_lines, held_lines, write_card, write_report
from .results import Results

NEW_TOKENS = 80


@dataclass
class _Job:
    """What the stages hand on."""

    options: QuickstartOptions
    config: TpttConfig
    loading: dict[str, Any]  # what the base is loaded with
    settings: TrainingSettings
    corpus: Corpus
    lengths: tuple[int, ...]
    results: Results


def run(options: QuickstartOptions) -> Results:
    """Run all stages, print what they find, and write the folder ``options.output_dir``.

    Raises:
        ValueError: the folder is not empty, or base, text and sizes do not fit each other.
        OSError: base or data were not found.
        RuntimeError: mu = 0 did not give the base's logits, or reloading in a fresh process failed.
    """
    check_output(options.output_dir)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    base, job = _begin(options)
    with _stage(job, "attach the memory, mu = 0"), report_progress("comparing with the base"):
        _check_identity(base, job.corpus.held_out[None, : job.results.seq_len])
    print("  logits with the memory attached at mu = 0 equal the base's, bit for bit")
    _measure(job, "base", base)
    _train_window_alone(job)
    model = _convert(job)
    with _stage(job, "recall by format"):
        for arm, one in (("base", base), ("converted", model)):
            job.results.by_format[arm] = recall_by_format(
                one, job.corpus, job.results.seq_len, job.results.window, max(1, options.eval_rows // 2), options.seed
            )
    with _stage(job, "memory held"), report_progress("reading with a cache"):
        _hold(job, {"base": base, "converted": model})
    for line in (*arm_lines(job.results), *held_lines(job.results)):
        print(f"  {line}")
    _reload_and_generate(job)
    with _stage(job, "plots and report"):
        _write_plots(job)
    report = write_report(options.output_dir, job.results, options)
    print(f"report: {report}   all stages: {sum(job.results.seconds.values()):.0f} s")
    return job.results


@contextmanager
def _stage(job: _Job, name: str) -> Iterator[None]:
    """Print a stage with its seconds when it is done; what takes long in it reports how far it is."""
    begun = time.perf_counter()
    yield
    job.results.seconds[name] = time.perf_counter() - begun
    print(f"{name} ({job.results.seconds[name]:.1f} s)", flush=True)


def _begin(options: QuickstartOptions) -> tuple[Any, _Job]:
    """The base, and the job with its text."""
    name, begun = str(options.base_model or BASE), time.perf_counter()
    trust = {"trust_remote_code": True} if options.trust_remote_code else {}
    config = TpttConfig(base_model_name=name, **trust)
    base = load_base(config, dtype=torch.float32, **trust).eval()
    seq_len, window = options.sizes(base.config)
    config = config.with_settings({"lora_config": lora_config(base), "max_self_attn_length": window})
    check_reach(base, seq_len)
    base.to(gpu() or "cpu")
    settings = options.settings(seq_len)
    corpus = Corpus.of(load_tokenizer(config, **trust), options.data, settings.tokens, seq_len, settings.seed)
    lengths = measured_lengths(seq_len, corpus, position_limit(base))
    results = Results(name, seq_len, window, base.num_parameters(), tokens=settings.tokens)
    if len(lengths) < 3:
        results.notes.append(f"measured at {lengths} only: the base or the text reaches no further")
    results.seconds["load base and text"] = time.perf_counter() - begun
    print(
        f"load base and text ({results.seconds['load base and text']:.1f} s)\n"
        f"  {results.parameters:,} parameters; rows of {seq_len} tokens, softmax window W = {window}",
        flush=True,
    )
    return base, _Job(options, config, {"dtype": torch.float32, **trust}, settings, corpus, lengths, results)


def _check_identity(base, ids: torch.Tensor) -> None:
    ids = ids.to(base.device)
    with evaluating(base):
        before = base(input_ids=ids, use_cache=False).logits
        attach_memory(base, MemoryConfig(mag_weight=0.0))
        after = base(input_ids=ids, use_cache=False).logits
        detach_memory(base)
    if not torch.equal(before, after):
        worst = (before - after).abs().max().item()
        raise RuntimeError(
            f"with mu = 0 the logits differ from the base's by up to {worst:.3g}: this base is not supported"
        )


def _measure(job: _Job, arm: str, model) -> None:
    options, results = job.options, job.results
    with _stage(job, f"measure: {arm}"):
        results.measures[arm] = measure(
            model,
            job.corpus,
            job.lengths,
            results.window,
            options.eval_rows,
            job.settings.recall_formats,
            options.seed,
        )


def _note_training(job: _Job, arm: str, model, history: list[dict]) -> None:
    job.results.trained[arm] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    job.results.losses[arm] = [entry for entry in history if "loss" in entry]


def _train_window_alone(job: _Job) -> None:
    """The arm that says what the memory adds: the same window and LoRA, the same rows in the same order."""
    with _stage(job, "train: window alone"):
        torch.manual_seed(job.settings.seed)
        model = window_alone(TpttModel(job.config, **job.loading)).to(gpu() or "cpu")
        history = train(model, job.corpus, job.settings, job.results.seq_len)
    _note_training(job, "window alone", model, history)
    _measure(job, "window alone", model)


def _convert(job: _Job) -> TpttModel:
    with _stage(job, "train: converted"):
        converted = convert_and_train(
            job.config, job.corpus, job.settings, job.options.output_dir / "checkpoint", **job.loading
        )
    job.results.converted = converted
    _note_training(job, "converted", converted.model, converted.history)
    _measure(job, "converted", converted.model)
    return converted.model


def _hold(job: _Job, models: dict[str, Any]) -> None:
    seq_len = job.results.seq_len
    steps = [n for n in (seq_len // 4, seq_len // 2, *job.lengths) if n >= 1]
    for arm, model in models.items():
        job.results.held[arm] = cache_growth(model, job.corpus.held_out, steps)


def _reload_and_generate(job: _Job) -> None:
    """Let a fresh process load the checkpoint and go on with held-out text."""
    out, results, tokenizer = job.options.output_dir, job.results, job.corpus.tokenizer
    write_card(out / "checkpoint", results)
    read = min(max(3 * results.window, 16), job.lengths[-1] // 2)
    prompt = tokenizer.decode(job.corpus.held_out[:read])
    new_tokens = min(NEW_TOKENS, job.lengths[-1] // 2 - 2)  # a base with a table of positions ends there
    print("  a fresh process loads it with AutoModelForCausalLM and goes on with held-out text:\n")
    with _stage(job, "reload and generate"):
        results.generated, results.reloaded = generate_fresh(
            out, prompt, new_tokens, torch.get_num_threads(), lambda piece: print(piece, end="", flush=True)
        )
        found = results.reloaded
        print(
            f"\n  {found['tokens']} tokens read and written; "
            f"keys held per layer: {found['kv_entries']} (window {found['window']})"
        )


def _write_plots(job: _Job) -> None:
    try:
        from .plots import write_plots
    except ImportError as error:
        job.results.notes.append(f"no plots were drawn: {error}. pip install matplotlib, or the extra tptt[plot]")
        print(f"  {job.results.notes[-1]}")
        return
    write_plots(job.results, job.options.output_dir / "plots")
    job.results.plots = True
