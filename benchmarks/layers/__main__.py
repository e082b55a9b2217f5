"""Recall and perplexity against the budget of keys and values: which layers keep their whole context.

python -m benchmarks.layers                       # every arm, budget and seed; goes on where it was stopped
python -m benchmarks.layers --write               # and puts table and plot where the documents have them
python -m benchmarks.layers --seeds 1             # on another core, into the same file; the first then finds it there

Arms choose the same number of layers in different ways: by the KL divergence that restoring them saves
(`tptt.convert.choose_layers`), evenly, the last ones, and, to see whether the ranking says anything, those that it
ranks last. The others have window and memory. A set of layers that several arms choose is trained once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.record import RESULTS, ROOT, write_section
from benchmarks.runs import Runs
from tptt.assets import BASE

from .bench import ARMS, Bench
from .report import beyond, numbers, plot, report

TITLE = "Layers that keep their whole context"


def run(bench: Bench, seeds: Sequence[int], budgets: Sequence[float]) -> None:
    """Every ranking and training that is not there yet."""
    total = len(bench.layers)
    bench.untrained()
    for seed in seeds:
        ranking = bench.ranking(seed)
        print(f"seed {seed}: order {ranking['order']}, KL {[round(x, 4) for x in ranking['kl']]}", flush=True)
        sets = dict.fromkeys(
            tuple(sorted(choose(tuple(ranking["order"]), n)))
            for n in numbers(budgets, total)
            for choose in ARMS.values()
        )
        for i, whole in enumerate(sets, 1):
            found = bench.trained(seed, whole)
            recall = ", ".join(str(beyond(found, int(t))) for t in found["beyond"])
            print(
                f"seed {seed}, {i}/{len(sets)}: whole {list(whole)}: perplexity {found['perplexity']['1']:.2f}, recall "
                f"beyond the window {recall} ({found['seconds']:.0f} s)",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(BASE), help="folder or hub id of the base")
    parser.add_argument("--tokens", type=int, default=524_288, help="of each training")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--window", type=int, default=64, help="W")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="parts of the layers kept whole"
    )
    parser.add_argument("--answers", type=int, default=500, help="that a share of recall rests on")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "layers.jsonl", help="where results are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md and docs/layers.png")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    runs = Runs(options.runs, "layers")
    bench = Bench(options.base, options.tokens, options.length, options.window, runs, options.answers)
    run(bench, options.seeds, options.budgets)
    text = report(bench, options.seeds, options.budgets)
    print(text)
    place = ROOT / "docs" if options.write else options.runs.parent
    print(plot(bench, options.seeds, options.budgets, place / "layers.png"))
    if options.write:
        write_section(RESULTS, TITLE, text)


if __name__ == "__main__":
    main()
