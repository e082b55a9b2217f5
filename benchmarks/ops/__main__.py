"""The operators against their peers, on this machine.

    python -m benchmarks.ops                       # prints; --write puts it into benchmarks/RESULTS.md
    python -m benchmarks.ops --original PYTHON     # also the public tptt 0.12.1, in a Python that has it installed
    python -m benchmarks.ops --device cuda         # fla-core through tptt, fla-core alone, SDPA

Correctness is checked first. Gated delta rule, batch 1. CPU: float32, in a process that keeps the memory it frees.
CUDA: bfloat16, and without decays where fla refuses their gradients (on Hopper with Triton 3.4 to 3.7.0).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import torch

from benchmarks.record import RESULTS, processor, section, write_section
from tptt.ops import available_backends
from tptt.train import keep_freed_memory

from .contenders import Original, check
from .tables import SHAPES, against_peers, crossover, decays, decoding, halves, memory, share_of_peak

FILLING_A_GPU = (8192, 96, 128)  # T, H, D: at batch 1 the other shapes are bound by launches there


def tables(args: argparse.Namespace, dtype: torch.dtype) -> Iterator[str]:
    """What the command prints, as it comes."""
    yield "Largest relative error of outputs and gradients: " + ", ".join(check(args.device, dtype)) + "."
    shapes = [(tokens, *shape) for tokens in ((512,) if args.quick else (4096, 16384)) for shape in SHAPES]
    if args.device == "cuda" and not args.quick:
        shapes.append(FILLING_A_GPU)
    original = Original(args.original) if args.original else None
    yield "### Against peers"
    yield against_peers(args.device, dtype, shapes, original)
    yield "### Where it overtakes SDPA, H 16, D 64, forward + backward"
    yield crossover(args.device, dtype)
    if args.device == "cpu":
        yield "### By decay, T 4096, H 16, D 64, forward + backward, ms"
        yield decays()
        errors = ", ".join(check(args.device, torch.bfloat16))
        yield "### bfloat16, T 4096, ms"
        yield halves()
        yield f"Largest relative error there: {errors}."
        yield "### Share of the machine's peak"
        yield share_of_peak()
        yield "### One token"
        yield decoding()
        yield "### Peak memory above inputs, outputs and gradients, forward + backward"
        yield memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--original", metavar="PYTHON", help="a Python with tptt==0.12.1 installed")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name}, by machine")
    parser.add_argument("--quick", action="store_true", help="short lengths only: does it run?")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    start = time.monotonic()
    if args.device == "cpu":
        keep_freed_memory()  # by what ran before, fresh pages would cost one contender or another a third of a call
    for backend, reason in available_backends().items():
        if reason:
            print(f"left out: {backend}, {reason}", file=sys.stderr)
    parts = []
    for part in tables(args, dtype):
        print(part, flush=True, end="\n\n")
        parts.append(part)
    parts.append(f"The run took {(time.monotonic() - start) / 60:.0f} minutes.")
    options = (" --device cuda" if args.device == "cuda" else "") + (" --original PYTHON" if args.original else "")
    text = section("ops", f"python -m benchmarks.ops{options}", parts, args.device)
    print(text.partition("\n\n### ")[0])
    if args.write:
        write_section(RESULTS, f"Operators, {processor(args.device)}", text)


if __name__ == "__main__":
    main()
