"""Bytes held, prefill and decode by context length: a base with its whole cache beside the same with a memory.

python -m benchmarks.generation            # 20 minutes; tables to the screen
python -m benchmarks.generation --write    # and into RESULTS.md, plots into docs/
python -m benchmarks.generation --quick    # short contexts: does it run?

The base is a random Llama, with transformers' dynamic cache and with its static one (speed does not depend on what
weights say). Its cache at a context is filled with random keys and values, which its speed does not depend on either;
the converted models have the default memory and have read every token.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, section, write_section
from tptt.evaluation import measured_size

from .measure import decode_seconds, prefill_seconds, read_on, step_profile
from .models import BASES, CHUNK, DYNAMIC, LONGEST, WINDOWS, build, check, converted, filled, read
from .report import (
    decode_table,
    findings,
    held_table,
    plot_reading,
    plot_speed,
    prefill_table,
    reading_text,
    step_table,
)

DOCS = ROOT / "docs"
CONTEXTS = tuple(512 * 2**i for i in range(9))
_ROOM = 1  # tokens that a static cache holds beside the context while it decodes


def run(contexts: tuple[int, ...], tokens: int, plots: Path | None) -> str:
    """The section of RESULTS.md; ``tokens`` are read through a session."""
    start = time.monotonic()
    models = build()
    size = sum(p.numel() for p in models[DYNAMIC].parameters()) / 1e6
    checked = check(models)
    held = {(name, n): filled(models[name], name, n, _ROOM) for name in BASES for n in contexts}
    for window in WINDOWS:
        name = converted(window)
        held |= {(name, n): cache for n, cache in read(models[name], contexts).items()}
    sizes = {key: measured_size(cache).bytes for key, cache in held.items()}
    decode = decode_seconds(models, held)
    steps = step_profile(models, held, contexts[1])
    held |= {(name, n): filled(models[name], name, n, CHUNK) for name in BASES for n in contexts}
    prefill = prefill_seconds(models, held)
    name = converted(WINDOWS[-1])
    reading = read_on(models[name], tokens)
    if plots is not None:
        plot_speed(decode, prefill, list(models), contexts, plots / "generation-speed.png")
        plot_reading(name, reading, prefill, sizes, contexts, plots / "generation-million.png")
    parts = [
        f"A random Llama of {size:.1f} M parameters, float32, batch 1; W is the window of the converted model, which "
        "has the default memory.",
        f"{checked}.",
        findings(models, sizes, contexts, decode),
        held_table(list(models), held, sizes, contexts),
        prefill_table(list(models), prefill, contexts),
        decode_table(models, decode, contexts),
        step_table(steps, contexts[1]),
        reading_text(name, reading, sizes[DYNAMIC, contexts[0]] / contexts[0]),
        f"The run took {(time.monotonic() - start) / 60:.0f} minutes.",
    ]
    return section("generation", "python -m benchmarks.generation", parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help=f"put the tables into {RESULTS.name}, the plots into docs/"
    )
    parser.add_argument("--quick", action="store_true", help="short contexts only: does it run?")
    parser.add_argument("--plots", type=Path, default=None, help="another folder for the plots")
    args = parser.parse_args()
    contexts, tokens = (CONTEXTS[:2], 16 * CHUNK) if args.quick else (CONTEXTS, LONGEST)
    text = run(contexts, tokens, args.plots or (DOCS if args.write else None))
    print(text)
    if args.write:
        write_section(RESULTS, "Generation, CPU", text)


if __name__ == "__main__":
    main()
