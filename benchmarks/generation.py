"""Bytes held, prefill and decode by context length: a base with its whole cache beside the same with a memory.

python -m benchmarks.generation            # 20 minutes; tables to the screen
python -m benchmarks.generation --write    # and into RESULTS.md, plots into docs/
python -m benchmarks.generation --quick    # short contexts: does it run?

The base is a random Llama (speed does not depend on what weights say). Its cache at a context is filled with random keys
and values, which its speed does not depend on either; the converted model has read every token.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import pstats
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import tptt
from benchmarks.timing import interleaved, machine, write_section
from tptt.evaluation import markdown_table, measured_size
from tptt.evaluation.verify import TOLERANCE, verify
from tptt.hf import forward as hooks
from tptt.hf import memories
from tptt.inference import Session
from tptt.quickstart.plots import new_figure, save

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "RESULTS.md", ROOT / "docs"
BASE, WINDOWS, CHUNK = "base", (64, 512), 512
CONTEXTS = tuple(512 * 2**i for i in range(9))
LONG = 8192
MILLION = 2**20
COLORS = {BASE: "#4c72b0", "W = 64": "#55a868", "W = 512": "#c44e52"}


def build() -> dict[str, torch.nn.Module]:
    """The base and, on the same weights, a converted model for each window."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2 * MILLION, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    base = LlamaForCausalLM(config).eval()
    arms = {BASE: base}
    for window in WINDOWS:
        settings = tptt.MemoryConfig(max_self_attn_length=window, operator="gated_delta_rule")
        arms[f"W = {window}"] = tptt.attach_memory(copy.deepcopy(base), settings)
    return arms


def check(arms: dict) -> str:
    """What is timed is right: reading in pieces and decoding equal one pass."""
    found = {name: verify(model, ("pieces", "greedy")) for name, model in arms.items()}
    for name, values in found.items():
        if not all(isinstance(v, float) and v <= TOLERANCE for v in values.values()):
            raise AssertionError(f"{name}: {values}")
    return "Largest difference of cached from uncached logits, relative: " + ", ".join(
        f"{name} {values['pieces']:.0e}" for name, values in found.items()
    )


def filled(model, tokens: int) -> DynamicCache:
    """A cache of the base as after ``tokens`` tokens."""
    config = model.config
    cache, shape = DynamicCache(config=config), (1, config.num_key_value_heads, tokens, config.head_dim)
    for i in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), i)
    return cache


def caches(arms: dict, contexts: tuple[int, ...]) -> dict[tuple[str, int], DynamicCache]:
    """The cache of each arm after each context."""
    out = {(BASE, n): filled(arms[BASE], n) for n in contexts}
    for name, model in arms.items():
        session = Session(model, chunk_size=CHUNK) if name != BASE else None
        for n in contexts if session is not None else ():
            session.read(random_ids(n - session.tokens))
            out[name, n] = copy.deepcopy(session.cache)
    return out


def random_ids(tokens: int) -> torch.Tensor:
    return torch.randint(3, 2048, (tokens,))


def decode_seconds(arms: dict, held: dict) -> dict:
    """Seconds of one token at each context, arms taking turns at each, so that all find the processor's caches alike; the base
    behind LONG tokens by itself, because whoever comes after its gigabyte finds them cold."""
    token = torch.tensor([[5]])

    def step(name, cache):
        return lambda: arms[name](input_ids=token, past_key_values=cache, use_cache=True)

    steps = {key: step(key[0], held[key]) for key in sorted(held, key=lambda key: key[1])}
    big = {key: run for key, run in steps.items() if key[0] == BASE and key[1] > LONG}
    with torch.no_grad():
        together = interleaved({k: run for k, run in steps.items() if k not in big}, repeats=25, seconds=40, warm=1)
        return together | (interleaved(big, repeats=9, seconds=30, warm=1) if big else {})


def prefill_seconds(arms: dict, held: dict) -> dict:
    """Seconds of a chunk of CHUNK tokens behind each context."""
    ids = random_ids(CHUNK)[None]

    def chunk(name, cache):
        def run():
            arms[name](input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if name == BASE:
                cache.crop(-CHUNK)

        return run

    with torch.no_grad():
        return interleaved({key: chunk(key[0], cache) for key, cache in held.items()}, repeats=7, seconds=30, warm=1)


# ---- what theory says ----------------------------------------------------------------------------------------------


def step_bytes(model, window: int | None, context: int) -> int:
    """Bytes a decoding step has to move at least: weights once, keys and values once, the state in and out."""
    config = model.config
    weights = sum(p.nbytes for n, p in model.named_parameters() if "embed_tokens" not in n)
    kept = context if window is None else min(window, context)
    keys = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * kept
    states = sum(m.states * m.key_features.width * m.widths[1] * 4 for m in memories(model))
    return weights + keys + 2 * states


def crossover_by_bytes(arms: dict, window: int) -> int:
    """The context from which the converted model moves fewer bytes."""
    name = f"W = {window}"
    return next(n for n in range(1, MILLION) if step_bytes(arms[BASE], None, n) > step_bytes(arms[name], window, n))


# ---- one step in detail --------------------------------------------------------------------------------------------


def step_profile(arms: dict, held: dict, context: int) -> str:
    """Milliseconds and Python calls of one step, and what the memory has of them."""
    rows, token = [], torch.tensor([[5]])
    for name, model in arms.items():
        cache, spent, original = held[name, context], [0.0], hooks.mixed_branches

        def timed(*arguments, spent=spent, original=original):
            start = time.perf_counter()
            result = original(*arguments)
            spent[0] += time.perf_counter() - start
            return result

        def run(model=model, cache=cache):
            return model(input_ids=token, past_key_values=cache, use_cache=True)

        with torch.no_grad():
            profile = cProfile.Profile()
            run()
            profile.runcall(run)
            calls = pstats.Stats(profile).total_calls
            hooks.mixed_branches = timed
            try:
                times, memory = [], []
                for _ in range(50):
                    spent[0], start = 0.0, time.perf_counter()
                    run()
                    times.append(time.perf_counter() - start)
                    memory.append(spent[0] / times[-1])
            finally:
                hooks.mixed_branches = original
        rows.append([name, f"{1e3 * median(times):.2f}", f"{median(memory):.0%}", f"{calls:,}"])
    return markdown_table([f"one step after {context} tokens", "ms", "of it the memory", "Python calls"], rows)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


# ---- a million tokens ----------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """What `stream` reported while it read."""

    tokens: list[int]
    seconds: list[float]
    bytes_start: int
    bytes_end: int
    peak_growth: int  # of the process, from the first tenth to the end

    def speeds(self) -> list[tuple[int, float]]:
        """(tokens read, tokens per second) for each hundredth."""
        at = [len(self.tokens) * i // 100 for i in range(100)] + [len(self.tokens) - 1]
        pairs = sorted(set(at))
        return [
            (self.tokens[b], (self.tokens[b] - self.tokens[a]) / (self.seconds[b] - self.seconds[a]))
            for a, b in zip(pairs, pairs[1:], strict=False)
        ]

    def tenth(self, i: int) -> float:
        """Median tokens per second of the i-th tenth."""
        speeds = [s for _, s in self.speeds()]
        size = max(1, len(speeds) // 10)
        return median(speeds[i * size : (i + 1) * size] if i >= 0 else speeds[-size:])


def read_on(model, tokens: int) -> Reading:
    """Stream ``tokens`` random tokens through ``model``."""
    done, seconds, peaks = [], [], []

    def note(n, s):
        done.append(n)
        seconds.append(s)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    session = Session(model, chunk_size=CHUNK).read(random_ids(4 * CHUNK))
    start = measured_size(session.cache).bytes
    session.read((random_ids(CHUNK) for _ in range(tokens // CHUNK)), note)
    growth = peaks[-1] - peaks[len(peaks) // 10]
    return Reading(done, seconds, start, measured_size(session.cache).bytes, growth)


# ---- tables and plots ----------------------------------------------------------------------------------------------


def tables(arms: dict, held: dict, sizes: dict, contexts, decode: dict, prefill: dict) -> list[str]:
    names = list(arms)
    kept = [[str(n), *(f"{sizes[a, n] / 1024:,.0f}" for a in names)] for n in contexts]
    entries = ", ".join(f"{a} {measured_size(held[a, contexts[-1]]).entries}" for a in names[1:])
    reading = [[str(n), *(f"{CHUNK / prefill[a, n]:,.0f}" for a in names)] for n in contexts]
    writing = []
    for n in contexts:
        row = [str(n), *(f"{1 / decode[a, n]:,.0f}" for a in names)]
        for window in WINDOWS:
            name = f"W = {window}"
            limit = step_bytes(arms[BASE], None, n) / step_bytes(arms[name], window, n)
            row.append(f"{decode[BASE, n] / decode[name, n]:.2f} / {limit:.2f}")
        writing.append(row)
    against = [f"{name} / base, measured / by bytes" for name in names[1:]]
    return [
        f"### KiB held by the cache (keys kept per layer at the end: {entries})",
        markdown_table(["context", *names], kept),
        f"### Prefill, tokens/s of a chunk of {CHUNK} behind the context",
        markdown_table(["context", *names], reading),
        '### Decode, tokens/s\n\ntransformers\' dynamic cache, which the base has by default, copies all keys and values at every step; "by bytes" is '
        "what moving weights, keys, values and states once would give, so that the measured ratio can exceed it.",
        markdown_table(["context", *names, *against], writing),
    ]


def findings(arms: dict, sizes: dict, contexts, decode: dict) -> str:
    lines = []
    for window in WINDOWS:
        name = f"W = {window}"
        faster = [n for n in contexts if all(decode[name, m] < decode[BASE, m] for m in contexts if m >= n)]
        beyond = {sizes[name, n] for n in contexts if n >= window}
        early, late = (n for n in (1024, 65536)) if 65536 in contexts else (contexts[0], contexts[-1])
        lines.append(
            f"- {name}: the cache is {'constant to the byte' if len(beyond) == 1 else f'not constant: {sorted(beyond)}'} from "
            f"{min(n for n in contexts if n >= window)} on; decode at {late} runs at {decode[name, early] / decode[name, late]:.1%} of the "
            f"speed at {early}; faster than the base from {faster[0] if faster else 'nowhere measured'} on "
            f"(by bytes moved: from {crossover_by_bytes(arms, window)})."
        )
    return "\n".join(lines)


def plot_speed(decode: dict, prefill: dict, names, contexts, path: Path) -> Path:
    """Tokens per second against context."""
    figure, panels = new_figure(2)
    for panel, times, tokens, title in zip(
        panels, (prefill, decode), (CHUNK, 1), (f"prefill, chunks of {CHUNK}", "decode"), strict=True
    ):
        for name in names:
            panel.plot(
                contexts, [tokens / times[name, n] for n in contexts], marker="o", label=name, color=COLORS[name]
            )
        panel.set(xlabel="context in tokens", ylabel="tokens/s", title=title, ylim=(0, None))
        panel.set_xscale("log", base=2)
        panel.legend()
    return save(figure, path)


def plot_reading(name: str, reading: Reading, prefill: dict, sizes: dict, contexts, path: Path) -> Path:
    """Tokens per second and bytes held while reading on and on."""
    figure, (speed, size) = new_figure(2)
    speed.plot(*zip(*reading.speeds(), strict=True), label=name, color=COLORS[name])
    speed.plot(contexts, [CHUNK / prefill[BASE, n] for n in contexts], marker="o", label=BASE, color=COLORS[BASE])
    speed.set(xlabel="tokens read", ylabel="tokens/s", title="reading", ylim=(0, None))
    size.plot(
        [contexts[0], reading.tokens[-1]],
        [reading.bytes_start / 2**20, reading.bytes_end / 2**20],
        label=name,
        color=COLORS[name],
    )
    size.plot(contexts, [sizes[BASE, n] / 2**20 for n in contexts], marker="o", label=BASE, color=COLORS[BASE])
    size.set(xlabel="tokens read", ylabel="MiB held by the cache", title="memory", yscale="log")
    for panel in (speed, size):
        panel.set_xscale("log", base=2)
        panel.legend()
    return save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help=f"put the tables into {RESULTS.name}, the plots into docs/"
    )
    parser.add_argument("--quick", action="store_true", help="short contexts only: does it run?")
    parser.add_argument("--plots", type=Path, default=None, help="another folder for the plots")
    args = parser.parse_args()
    start = time.monotonic()
    contexts, tokens = (CONTEXTS[:2], 16 * CHUNK) if args.quick else (CONTEXTS, MILLION)
    arms = build()
    parts = [f"`python -m benchmarks.generation` on {machine()}."]
    parts.append(f"A random Llama of {sum(p.numel() for p in arms[BASE].parameters()) / 1e6:.1f} M parameters, float32, batch 1; W is the window "
                 "of the converted model, whose operator is the gated delta rule.")  # fmt: skip
    parts.append(check(arms) + ".")
    held = caches(arms, contexts)
    sizes = {key: measured_size(cache).bytes for key, cache in held.items()}
    decode = decode_seconds(arms, held)
    held |= {(BASE, n): filled(arms[BASE], n) for n in contexts}  # without the tokens that were timed
    prefill = prefill_seconds(arms, held)
    parts += [findings(arms, sizes, contexts, decode), *tables(arms, held, sizes, contexts, decode, prefill)]
    parts += ["### One step", step_profile(arms, held, contexts[1])]
    name = f"W = {WINDOWS[-1]}"
    reading = read_on(arms[name], tokens)
    first, last = reading.tenth(0), reading.tenth(-1)
    parts += [
        f"### {reading.tokens[-1]:,} tokens through `stream`, {name}",
        f"{reading.tokens[-1] / reading.seconds[-1]:,.0f} tokens/s over all; in the last tenth {last / first:.1%} of the first (medians "
        f"{last:,.0f} and {first:,.0f}). The cache held {reading.bytes_start:,} bytes at the start and {reading.bytes_end:,} at the end; the "
        f"process's peak grew by {reading.peak_growth / 2**20:.1f} MiB from the first tenth on. The base's cache of as many tokens would hold "
        f"{sizes[BASE, contexts[0]] / contexts[0] * reading.tokens[-1] / 2**30:.1f} GiB.",
    ]
    parts.append(f"The run took {(time.monotonic() - start) / 60:.0f} minutes.")
    text = "\n\n".join(parts)
    print(text)
    folder = args.plots or (DOCS if args.write else None)
    if folder is not None:
        plot_speed(decode, prefill, list(arms), contexts, folder / "generation-speed.png")
        plot_reading(name, reading, prefill, sizes, contexts, folder / "generation-million.png")
    if args.write:
        write_section(RESULTS, "Generation, CPU", text)


if __name__ == "__main__":
    main()
