"""Which conversion learns most per trained token.

python -m benchmarks.conversion                      # all arms, budgets and seeds, both bases; goes on after a stop
python -m benchmarks.conversion --arms default --budgets 0.5 --seeds 0
python -m benchmarks.conversion --report --write     # what is there: RESULTS.md, docs/conversion-*.png, curves*.json

Results are lines in ``results.jsonl`` beside this file, found again by base, memory, settings and code: what was
trained with another recipe is not shown, and what was measured with older code is trained again, or shown as older
with ``--report``. Several processes may fill the file at once, each with its own seeds. Bases other than the embedded
one are trained by this command. The large one wants a GPU, and is taken only by name:

python -m benchmarks.conversion --bases large --arms default "window alone" --seeds 0
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.record import RESULTS, ROOT, write_section
from benchmarks.runs import Runs
from tptt.assets import BASE

from .arms import ARMS, REFERENCES
from .bench import DEVICE, Bench
from .cells import cells_of, recall
from .curves import curves, write_curves
from .plot import plot
from .report import Report

KIND = "conversion"
SECOND = (
    "--hidden-size 96 --layers 6 --heads 3 --kv-heads 3 --intermediate-size 256 --vocab-size 1024 --length 256 "
    "--rows 16 --recall-rows 7 --minutes 36"
)
"""6 layers of 3 heads without groups, another vocabulary, half the context."""
LARGE = (
    "--hidden-size 512 --layers 8 --heads 8 --kv-heads 4 --intermediate-size 1536 --vocab-size 8192 --length 1024 "
    "--rows 32 --recall-rows 12 --minutes 1.5 --device cuda --workers 12 --installed"
)
"""What a minute and a half on a large GPU makes of 60 million characters: 29 M parameters, twice the context."""
SHAPES = {"second": SECOND, "large": LARGE}
DEFAULT = ("embedded", "second")
ROWS = {"embedded": 512, "second": 256, "large": 1024}  # tokens of a training row; W is an eighth
HIDDEN = {"embedded": 128, "second": 96, "large": 512}
CURVES_OF = {"embedded": BASE.with_name("curves.json"), "large": BASE.with_name("curves-large.json")}


def trained_base(name: str, folder: Path) -> None:
    """Train the base ``name`` of `SHAPES` where it is not there yet."""
    if not (folder / "training.json").exists():
        command = [sys.executable, "-m", "tools.train_base.train", "--out", str(folder), *SHAPES[name].split()]
        subprocess.run(command, check=True)


def bench_of(name: str, runs: Path, results: Path, train: bool = True) -> Bench:
    """The bench of a base; without ``train`` a base that is not there stays away: its results are there without it."""
    base = BASE if name == "embedded" else runs / f"{name}-base"
    if train and name in SHAPES:
        trained_base(name, base)
    return Bench(base, ROWS[name], ROWS[name] // 8, HIDDEN[name], Runs(results, KIND, DEVICE))


def run(name: str, bench: Bench, arms: Sequence[str], budgets: Sequence[int], seeds: Sequence[int]) -> None:
    """Train what is not there yet: small budgets first, and of those what the others are compared with."""
    bench.untrained()
    order = sorted(arms, key=lambda arm: arm not in REFERENCES)
    for tokens in sorted(budgets):
        for arm in order:
            for seed in seeds:
                row = bench.trained(ARMS[arm], tokens, seed)
                part = ARMS[arm].parts[-1]
                print(
                    f"{name} base, {arm}, {tokens:,} tokens, seed {seed}: recall beyond W "
                    f"{recall(row, part, 1, ARMS[arm].formats)} on the {part} part ({row['seconds']:.0f} s)",
                    flush=True,
                )


def report(name: str, bench: Bench, options: argparse.Namespace, budgets: Sequence[int]) -> None:
    """Print the tables of one base and draw its plot; with ``--write`` put them where the package has them."""
    cells = cells_of(bench, budgets, options.seeds)
    text = Report(bench, cells).text()
    print(f"{name} base\n\n{text}")
    place = ROOT / "docs" if options.write else options.runs
    print(plot(bench, cells, place / f"conversion-{name}.png"))
    if not options.write:
        return
    by_name = "" if name in DEFAULT else f" --bases {name}"
    command = f"`python -m benchmarks.{KIND}{by_name}` measures, with `--report` it prints what is there."
    write_section(
        RESULTS, f"Conversion, {name} base", f"{command}\n\n{text}\n\n![conversion](../docs/conversion-{name}.png)"
    )
    if name in CURVES_OF:
        write_curves(CURVES_OF[name], curves(bench, cells, name))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.conversion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bases", nargs="+", choices=list(ROWS), default=DEFAULT)
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM", help=", ".join(ARMS)
    )
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.0625, 0.25, 0.5, 1, 2, 4], help="millions (2^20) of tokens"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", help="folder of the bases trained here, and of plots"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--write", action="store_true", help="put tables, plots and curves where the package has them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    budgets = [round(b * 2**20) for b in options.budgets]
    benches = {name: bench_of(name, options.runs, options.results, not options.report) for name in options.bases}
    if not options.report:
        for name, bench in benches.items():
            run(name, bench, options.arms, budgets, options.seeds)
    for name, bench in benches.items():
        report(name, bench, options, budgets)


if __name__ == "__main__":
    main()
