"""Where the time of a real model goes: a training step, a prompt and a decoding step, converted over base.

Base and converted model take turns in one process, so that a busy machine slows both. Ratios are medians over turns, of
seconds of the processor (summed over threads; other processes do not count) and of the clock.

Legend: T tokens of a row, of a prompt, or held when a token is decoded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiled
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, StaticCache

import tptt
from benchmarks.generation.models import STATIC, Forward, filled
from tptt.evaluation import markdown_table
from tptt.hf.read_with_cache import read_with_cache

WINDOW = 64
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2**17,
}
"""Of SmolLM2-135M; its weights, which speed does not depend on, are drawn where no base is given."""
KINDS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"),
    "kernels of the memory": ("DirectRecurrence", "_Waves", "tptt::"),
    "softmax attention": ("aten::_scaled_dot_product", "aten::_softmax"),
    "optimizer": ("Optimizer.", "aten::_fused_adam", "aten::_foreach"),
}
"""Beginnings of the names of torch's operators; all others are elementwise."""
ELEMENTWISE, UNSEEN = "elementwise and copies", "outside of torch's operators"
TRAINED, PROMPT, CONTEXT, STEPS = (512, 2048), 4096, 32768, 4
PARTS = ("training", "prefill", "decode")


class Contender(NamedTuple):
    """What is timed: ``run`` once; ``finish`` is its optimizer's step, timed with it."""

    run: Callable[[], object]
    finish: Callable[[], object] | None = None

    def __call__(self) -> None:
        self.run()
        if self.finish is not None:
            self.finish()


class Timed(NamedTuple):
    """Seconds of a turn of each model."""

    base: float
    converted: float


def take_turns(base: Contender, converted: Contender, turns: int) -> tuple[list[Timed], list[Timed]]:
    """(of the processor, of the clock) for each turn, after one to warm up."""
    used, passed = [], []
    for turn in range(turns + 1):
        found = []
        for contender in (base, converted):
            start = time.process_time(), time.perf_counter()
            contender()
            found.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        if turn:
            used.append(Timed(found[0][0], found[1][0]))
            passed.append(Timed(found[0][1], found[1][1]))
    return used, passed


def kind_of(name: str) -> str:
    """The kind of an operator of this name."""
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), ELEMENTWISE)


def seconds_by_kind(contender: Contender) -> dict[str, float]:
    """Seconds of the clock of one call by kind, as torch's profiler counts them."""
    found = dict.fromkeys((*KINDS, ELEMENTWISE, UNSEEN), 0.0)
    with profiled(activities=[ProfilerActivity.CPU]) as trace:
        inside = time.perf_counter()
        contender.run()
        passed = time.perf_counter() - inside
    for event in trace.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    if contender.finish is not None:
        inside = time.perf_counter()
        contender.finish()
        found["optimizer"] += time.perf_counter() - inside
    seen = sum(found.values()) - found["optimizer"]
    found[UNSEEN] = max(0.0, passed - seen)
    return found


def training(model, tokens: int) -> Contender:
    """A step on one row."""
    ids = torch.randint(3, model.config.vocab_size, (1, tokens))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model.train()
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return Contender(run, optimizer.step)


def prompt(model, tokens: int) -> Contender:
    """A whole prompt in one call, with a cache."""
    ids = torch.randint(3, model.config.vocab_size, (1, tokens))

    @torch.no_grad()
    def run() -> None:
        read_with_cache(model.eval(), ids, logits=1)

    return Contender(run)


def decoding(model, held: int, is_base: bool) -> Contender:
    """`STEPS` tokens behind ``held`` ones; the base's are random keys and values in a static cache. A converted model
    reads twice its window, which its speed goes by, and no more."""
    token = torch.tensor([[5]])
    with torch.no_grad():
        if is_base:
            cache = filled(model, STATIC, held, STEPS)
            assert isinstance(cache, StaticCache)
        else:
            ids = torch.randint(3, model.config.vocab_size, (1, 2 * WINDOW))
            cache = read_with_cache(model.eval(), ids, logits=1)[1]
    one = Forward(STATIC if is_base else "converted", model.eval(), cache, token)

    @torch.no_grad()
    def run() -> None:
        for _ in range(STEPS):
            one()

    return Contender(run)


def build(folder: str | None, width: int) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """The plain base, the base with LoRA, and the converted model with the same LoRA, all float32."""

    def plain() -> torch.nn.Module:
        if folder is not None:
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPE))

    lora = LoraConfig(task_type="CAUSAL_LM", **LORA)
    base, own = plain(), plain()
    config = tptt.TpttConfig(
        text_config=own.config.to_dict(),
        lora_config=lora.to_dict(),
        max_self_attn_length=WINDOW,
        feature_width=width,
    )
    return base, get_peft_model(plain(), lora), tptt.TpttModel(config, base=own)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--base", help="folder of the base; without one its shape with random weights")
    parser.add_argument("--width", type=int, default=2048, help="feature width of each memory")
    parser.add_argument("--rows", nargs="+", type=int, default=list(TRAINED), help="tokens of a row of a training step")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))


def run(args: argparse.Namespace) -> None:
    """Print both tables."""
    torch.set_num_threads(args.threads)
    base, trained, converted = build(args.base, args.width)
    cases: dict[str, Callable[[], tuple[Contender, Contender]]] = {}
    if "training" in args.parts:
        for tokens in args.rows:
            cases[f"training step, T = {tokens}"] = lambda n=tokens: (training(trained, n), training(converted, n))
    if "prefill" in args.parts:
        cases[f"prefill, T = {PROMPT}"] = lambda: (prompt(base, PROMPT), prompt(converted, PROMPT))
    if "decode" in args.parts:
        cases[f"decode of {STEPS} tokens, T = {CONTEXT}"] = lambda: (
            decoding(base, CONTEXT, True),
            decoding(converted, CONTEXT, False),
        )
    ratios, kinds = [], []
    for name, make in cases.items():
        pair = make()
        used, passed = take_turns(*pair, args.turns)
        medians = [statistics.median(values) for values in zip(*passed, strict=True)]
        of_turns = [statistics.median(x.converted / x.base for x in times) for times in (used, passed)]
        ratios.append([name, *(f"{x:.3f}" for x in (*medians, *of_turns))])
        parts = [seconds_by_kind(contender) for contender in pair]
        kinds += [[name, kind, *(f"{x[kind]:.3f}" for x in parts)] for kind in parts[0] if any(x[kind] for x in parts)]
    heads = ["", "base, s", "converted, s", "ratio, processor", "ratio, clock"]
    print(markdown_table(heads, ratios))
    print(markdown_table(["", "kind", "base, s", "converted, s"], kinds))
