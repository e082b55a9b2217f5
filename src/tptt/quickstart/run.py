"""The stages of a run, in order."""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tptt.assets import BASE
from tptt.config import MemoryConfig
from tptt.convert.lora import lora_config
from tptt.data import FORMATS
from tptt.evaluation import cache_growth
from tptt.evaluation.perplexity import evaluating
from tptt.hf import attach_memory, detach_memory
from tptt.hf.configuration import base_error
from tptt.inference.session import position_limit
from tptt.train import Corpus, TrainingSettings
from tptt.train.loop import check_reach

from .arms import new_arm, train_arm
from .measures import measure, measured_lengths, recall_by_format
from .options import QuickstartOptions, check_output
from .plots import plot_memory, plot_quality, plot_training
from .records import RecordCorpus
from .reload import generate_fresh
from .report import write_card, write_report
from .results import Results

NEW_TOKENS = 80


class _Stage:
    """Seconds and a progress bar per stage."""

    def __init__(self, console: Console, seconds: dict[str, float]) -> None:
        self.console, self.seconds = console, seconds

    @contextmanager
    def __call__(self, name: str, total: int | None = None):
        start = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = total is None or not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as bar:
            task = bar.add_task(name, total=total or 1)
            yield lambda n: bar.advance(task, n)
        self.seconds[name] = time.perf_counter() - start
        self.console.print(f"[bold]{name}[/bold] ({self.seconds[name]:.1f} s)")


def run(options: QuickstartOptions, console: Console | None = None) -> Results:
    """Run all stages and write the folder ``options.out``.

    Raises:
        ValueError: the folder is not empty, or base, text and sizes do not fit each other.
        OSError: base or data were not found.
        RuntimeError: mu = 0 did not give the base's logits, or reloading in a fresh process failed.
    """
    console = console or Console(highlight=False)
    check_output(options.out)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name = str(options.base_model or BASE)
    seconds: dict[str, float] = {}
    stage = _Stage(console, seconds)
    with stage("load the base"):
        base, tokenizer = _load(name)
    length, window = options.sizes(base.config)
    settings = options.settings(length)
    check_reach(base, length * settings.tbptt_chunks)
    results = Results(name, length, window, parameters=base.num_parameters(), seconds=seconds, tokens=settings.tokens)
    console.print(f"  {results.parameters:,} parameters; rows of {length} tokens, softmax window W = {window}")
    with stage("read the text"):
        corpus = RecordCorpus.of(
            tokenizer, options.data, settings.tokens, length * settings.tbptt_chunks, settings.seed
        )
    lengths = measured_lengths(length, corpus, position_limit(base))
    if len(lengths) < 3:
        results.notes.append(f"measured at {lengths} only: the base or the text reaches no further")
    with stage("attach the memory, mu = 0"):
        _check_identity(base, corpus.held_out[None, :length])
    console.print("  logits with the memory attached at mu = 0 equal the base's, bit for bit")
    model = _compare(base, corpus, lengths, options, settings, results, stage)
    with stage("memory held"):
        _hold(base, model, corpus, lengths, results)
    _show(results, console)
    _save_and_reload(model, corpus, lengths, options, results, stage)
    console.print(f"report: {options.out / 'report.md'}   all stages: {sum(seconds.values()):.0f} s", soft_wrap=True)
    return results


def _load(name: str):
    try:
        base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        return base, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise base_error(name, error) from error


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


def _compare(
    base, corpus: Corpus, lengths: tuple[int, ...], options: QuickstartOptions, settings: TrainingSettings,
    results: Results, stage,
):  # fmt: skip
    """Train and measure the arms; returns the converted model."""
    length, window, formats = results.length, results.window, settings.recall_formats
    lora = lora_config(base)
    base.to("cuda" if torch.cuda.is_available() else "cpu")

    def measured(arm: str, model) -> None:
        with stage(f"measure: {arm}", len(lengths)) as tick:
            found = measure(model, corpus, lengths, window, options.eval_rows, formats, options.seed, tick)
        results.measures[arm] = found

    measured("base", base)
    for arm, memory in (("window alone", False), ("converted", True)):
        model = new_arm(results.base_model, lora, window, corpus, settings, length, memory)
        results.trained[arm] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        with stage(f"train: {arm}", options.steps) as tick:
            results.histories[arm], probe = train_arm(model, corpus, settings, length, tick)
        if probe is not None:
            results.probe_results, results.warnings = probe.probe_results, probe.warnings
        measured(arm, model)
    with stage("recall by format", 2 * len(FORMATS)) as tick:
        rows = max(1, options.eval_rows // 2)
        for arm, one in (("base", base), ("converted", model)):
            results.by_format[arm] = recall_by_format(one, corpus, length, window, rows, options.seed, tick)
    return model


def _hold(base, model, corpus: Corpus, lengths: tuple[int, ...], results: Results) -> None:
    length = results.length
    steps = [n for n in (length // 4, length // 2, *lengths) if n >= 1]
    for arm, one in (("base", base), ("converted", model)):
        results.held[arm] = cache_growth(one, corpus.held_out, steps)


def _show(results: Results, console: Console) -> None:
    for arm, measures in results.measures.items():
        for n, ppl in measures.perplexity.items():
            inside, beyond = measures.recall[n].inside, measures.recall[n].beyond
            shares = ", ".join(
                f"{side} W {'-' if x is None else format(x, '.2f')}"
                for side, x in (("inside", inside), ("beyond", beyond))
            )
            console.print(f"  {arm:<13} length {n:>5}: perplexity {ppl:8.2f}, recall {shares}", soft_wrap=True)
    for warning in results.warnings:
        console.print(f"  {warning}", style="yellow", markup=False, soft_wrap=True)
    for arm, held in results.held.items():
        last = held[-1]
        console.print(
            f"  {arm:<13} holds {last.bytes / 1024:.0f} KiB after {last.tokens} tokens ({last.entries} keys per layer)",
            soft_wrap=True,
        )


def _save_and_reload(
    model, corpus: Corpus, lengths: tuple[int, ...], options: QuickstartOptions, results: Results, stage
) -> None:
    out, console, tokenizer = options.out, stage.console, corpus.tokenizer
    checkpoint = out / "checkpoint"
    with stage("save"):
        model.to("cpu").save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        write_card(checkpoint, results)
    read = min(max(3 * results.window, 16), lengths[-1] // 2)
    prompt = tokenizer.decode(corpus.held_out[:read])
    new_tokens = min(NEW_TOKENS, lengths[-1] // 2 - 2)  # a base with a table of positions ends there
    console.print(
        "  a fresh process loads it with AutoModelForCausalLM and goes on with held-out text:\n", soft_wrap=True
    )

    def echo(piece: str) -> None:
        console.print(piece, end="", markup=False, soft_wrap=True)

    with stage("reload and generate"):
        results.generated, results.reloaded = generate_fresh(out, prompt, new_tokens, torch.get_num_threads(), echo)
        found = results.reloaded
        console.print(
            f"\n  {found['tokens']} tokens read and written; "
            f"keys held per layer: {found['kv_entries']} (window {found['window']})"
        )
    with stage("plots and report"):
        plot_training(results, out / "plots" / "training.png")
        plot_quality(results, out / "plots" / "quality.png")
        plot_memory(results, out / "plots" / "memory.png")
    write_report(out, results, options)
