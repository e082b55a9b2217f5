"""Tables and plots of what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.plots import new_figure, save
from tptt.evaluation import markdown_table, measured_size

from .measure import Reading, Seconds
from .models import BASES, CHUNK, DYNAMIC, STATIC, WINDOWS, converted, crossover_by_bytes, step_bytes

COLORS = {DYNAMIC: "#4c72b0", STATIC: "#8172b3", "W = 64": "#55a868", "W = 512": "#c44e52"}
Contexts = tuple[int, ...]


def held_table(names: list[str], held: dict, sizes: dict, contexts: Contexts) -> str:
    """KiB that the caches hold."""
    entries = ", ".join(f"{n} {measured_size(held[n, contexts[-1]]).entries}" for n in names if n not in BASES)
    rows = [[str(n), *(f"{sizes[a, n] / 1024:,.0f}" for a in names)] for n in contexts]
    title = f"### KiB held by the cache (keys kept per layer at the end: {entries})"
    return f"{title}\n\n{markdown_table(['context', *names], rows)}"


def prefill_table(names: list[str], prefill: Seconds, contexts: Contexts) -> str:
    """Tokens per second of a chunk of a prompt."""
    rows = [[str(n), *(f"{CHUNK / prefill[a, n]:,.0f}" for a in names)] for n in contexts]
    title = f"### Prefill, tokens/s of a chunk of {CHUNK} behind the context"
    return f"{title}\n\n{markdown_table(['context', *names], rows)}"


def decode_table(models: dict, decode: Seconds, contexts: Contexts) -> str:
    """Tokens per second of decoding, and the ratio to the base with a static cache, measured and by bytes moved."""
    rows = []
    for n in contexts:
        row = [str(n), *(f"{1 / decode[name, n]:,.0f}" for name in models)]
        for window in WINDOWS:
            name = converted(window)
            limit = step_bytes(models[STATIC], None, n) / step_bytes(models[name], window, n)
            row.append(f"{decode[STATIC, n] / decode[name, n]:.2f} / {limit:.2f}")
        rows.append(row)
    ratios = [f"{converted(w)} / static, measured / by bytes" for w in WINDOWS]
    return "\n\n".join(
        [
            "### Decode, tokens/s",
            "The dynamic cache, which the base has by default, copies all keys and values at every step. The static "
            "cache writes in place and is as long as the context. By bytes: what moving weights, keys, values and "
            "states once gives; a measured ratio may exceed it.",
            markdown_table(["context", *models, *ratios], rows),
        ]
    )


def findings(models: dict, sizes: dict, contexts: Contexts, decode: Seconds) -> str:
    """A line for each window: bytes, speed with context, and from which context on it is faster than the base."""
    lines = []
    for window in WINDOWS:
        name = converted(window)
        beyond = {sizes[name, n] for n in contexts if n >= window}
        size = "constant to the byte" if len(beyond) == 1 else f"not constant: {sorted(beyond)}"
        early, late = (1024, 65536) if 65536 in contexts else (contexts[0], contexts[-1])
        from_context = ", ".join(f"than the {base} from {_faster(decode, name, base, contexts)} on" for base in BASES)
        lines.append(
            f"- {name}: the cache is {size} from {min(n for n in contexts if n >= window)} tokens on; decode at {late} "
            f"runs at {decode[name, early] / decode[name, late]:.1%} of the speed at {early}; faster {from_context} "
            f"(by bytes moved from {crossover_by_bytes(models, window)} on)."
        )
    return "\n".join(lines)


def _faster(decode: Seconds, name: str, base: str, contexts: Contexts) -> str:
    found = [n for n in contexts if all(decode[name, m] < decode[base, m] for m in contexts if m >= n)]
    return str(found[0]) if found else "no measured context"


def step_table(found: dict[str, tuple[float, int]], context: int) -> str:
    """Milliseconds and Python calls of one whole step."""
    rows = [[name, f"{1e3 * seconds:.2f}", f"{calls:,}"] for name, (seconds, calls) in found.items()]
    return f"### One step\n\n{markdown_table([f'one step after {context} tokens', 'ms', 'Python calls'], rows)}"


def reading_text(name: str, reading: Reading, base_bytes: float) -> str:
    """A million tokens in words; ``base_bytes`` is what the base's cache holds of a token."""
    first, last = reading.tenth(0), reading.tenth(-1)
    return (
        f"### {reading.tokens[-1]:,} tokens through `stream`, {name}\n\n"
        f"{reading.tokens[-1] / reading.seconds[-1]:,.0f} tokens/s over all; in the last tenth {last / first:.1%} of "
        f"the first (medians {last:,.0f} and {first:,.0f}). The cache held {reading.bytes_start:,} bytes at the start "
        f"and {reading.bytes_end:,} at the end; the process's peak grew by {reading.peak_growth / 2**20:.1f} MiB from "
        "the first tenth on. The base's cache of as many tokens would hold "
        f"{base_bytes * reading.tokens[-1] / 2**30:.1f} GiB."
    )


def plot_speed(decode: Seconds, prefill: Seconds, names: list[str], contexts: Contexts, path: Path) -> Path:
    """Tokens per second against context."""
    figure, panels = new_figure(2)
    kinds = ((prefill, CHUNK, f"prefill, chunks of {CHUNK}"), (decode, 1, "decode"))
    for panel, (times, tokens, title) in zip(panels, kinds, strict=True):
        for name in names:
            speeds = [tokens / times[name, n] for n in contexts]
            panel.plot(contexts, speeds, marker="o", label=name, color=COLORS[name])
        panel.set(xlabel="context in tokens", ylabel="tokens/s", title=title, ylim=(0, None))
        panel.set_xscale("log", base=2)
        panel.legend()
    return save(figure, path)


def plot_reading(name: str, reading: Reading, prefill: Seconds, sizes: dict, contexts: Contexts, path: Path) -> Path:
    """Tokens per second and bytes held while reading on and on."""
    figure, (speed, size) = new_figure(2)
    base = {"marker": "o", "label": DYNAMIC, "color": COLORS[DYNAMIC]}
    speed.plot(*zip(*reading.speeds(), strict=True), label=name, color=COLORS[name])
    speed.plot(contexts, [CHUNK / prefill[DYNAMIC, n] for n in contexts], **base)
    speed.set(xlabel="tokens read", ylabel="tokens/s", title="reading", ylim=(0, None))
    ends = [contexts[0], reading.tokens[-1]]
    size.plot(ends, [reading.bytes_start / 2**20, reading.bytes_end / 2**20], label=name, color=COLORS[name])
    size.plot(contexts, [sizes[DYNAMIC, n] / 2**20 for n in contexts], **base)
    size.set(xlabel="tokens read", ylabel="MiB held by the cache", title="memory", yscale="log")
    for panel in (speed, size):
        panel.set_xscale("log", base=2)
        panel.legend()
    return save(figure, path)
