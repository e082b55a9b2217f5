"""Two ways to say how wide each memory is to be, beside each other.

python -m benchmarks.widths

What counts is KL(base || base with a window in one layer alone), which takes a forward pass for each layer. What
`tptt.convert.allocate_widths` measures is the change of each layer's own output, in one pass for all layers. Printed
are the shares that the layers of the embedded base get by both, their rank correlation, and the time that each takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.record import section
from tptt import MemoryConfig
from tptt.assets import BASE
from tptt.convert import windowed
from tptt.convert.divergence import divergences, untrained
from tptt.convert.widths import dependence, shares
from tptt.data import pack_rows, stdlib_text, tokenize
from tptt.evaluation import markdown_table
from tptt.hf import memory_layers

_WIDTH = 2048


@dataclass(frozen=True)
class Measured:
    """Both measures of one base and window, by layer, and the seconds that they took."""

    window: int
    dependence: list[float]
    divergence: list[float]
    seconds: tuple[float, float]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths that `allocate_widths` gives."""
        return shares(self.dependence, _WIDTH)

    @property
    def widths_by_divergence(self) -> tuple[int, ...]:
        """Widths that the divergences give."""
        return shares(self.divergence, _WIDTH)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of the layers by both measures."""
        ranks = [torch.tensor(x).argsort().argsort().double() for x in (self.dependence, self.divergence)]
        return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def stdlib_rows(count: int, length: int, base: str = str(BASE)) -> torch.Tensor:
    """``count`` rows [N, length] of the standard library's text, in the tokens of ``base``."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    return pack_rows(tokenize(tokenizer, stdlib_text().train, count * length), length)[:count]


def measure(base, rows: torch.Tensor, windows: Iterable[int]) -> list[Measured]:
    """Both measures of ``base`` on ``rows`` [N, T], for each window."""
    batches = [{"input_ids": row[None]} for row in rows]
    found = []
    for window in windows:
        with windowed(base, MemoryConfig(max_self_attn_length=window)), untrained(base):
            layers = [x.layer for x in memory_layers(base)]
            start = time.perf_counter()
            ours = list(dependence(base, batches).values())
            middle = time.perf_counter()
            theirs = divergences(base, batches, [([x for x in layers if x != n], ()) for n in layers])
            end = time.perf_counter()
        found.append(Measured(window, ours, theirs, (middle - start, end - middle)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(BASE), help="path or hub id")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 32, 64, 128])
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).eval()
    rows = []
    for x in measure(base, stdlib_rows(args.rows, args.length, args.base), args.windows):
        each = [" ".join(f"{v / sum(values):.2f}" for v in values) for values in (x.divergence, x.dependence)]
        took = "{1:.2f} s, {0:.2f} s".format(*x.seconds)
        rows.append([x.window, *each, f"{x.rank_correlation:.2f}", took])
    heads = ["window", "shares by KL", "shares by output", "rank correlation", "time by KL, by output"]
    print(section("widths", "python -m benchmarks.widths", [markdown_table(heads, rows)]))


if __name__ == "__main__":
    main()
