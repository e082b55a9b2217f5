"""The operators against their peers, on this machine.

    python -m benchmarks.ops                       # prints; --write puts it into benchmarks/RESULTS.md
    python -m benchmarks.ops --original PYTHON     # also the public tptt 0.12.1, in a Python that has it installed
    python -m benchmarks.ops --device cuda         # fla-core through tptt, fla-core alone, SDPA

Correctness is checked first. Gated delta rule, batch 1. CPU: float32, in a process that keeps the memory it frees. CUDA:
bfloat16, and without decays where fla refuses their gradients (on Hopper with Triton 3.4 to 3.7.0).
Legend: T tokens, H heads, K and V width of keys and values, D of both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path

import torch
from torch.nn.functional import normalize, scaled_dot_product_attention

from tptt.evaluation import markdown_table
from tptt.ops import available_backends, delta_rule, delta_rule_step
from tptt.ops.fla import no_gated_gradient
from tptt.train import keep_freed_memory

from .memory import peak_units
from .timing import interleaved, machine, processor, write_section

RESULTS = Path(__file__).parent / "RESULTS.md"
SHAPES = ((16, 64), (8, 128))  # H, D
WIDE = (2048, 4, 2048, 64)  # T, H, K, V, as the default memory's
FILLING_A_GPU = (8192, 96, 128)  # T, H, D: at batch 1 the other shapes are bound by launches there


@dataclass
class Inputs:
    """q, k [1, T, H, K], v [1, T, H, V], beta and g [1, T, H], and a gradient of the output."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    g: torch.Tensor
    d_o: torch.Tensor

    @classmethod
    def random(
        cls, tokens: int, heads: int, width: int, device: str = "cpu", dtype=torch.float32, values: int | None = None
    ) -> Inputs:
        """Keys of `width`, values of `values` channels or as many."""
        torch.manual_seed(0)
        q, k = (normalize(torch.randn(1, tokens, heads, width), dim=-1) for _ in range(2))
        v, d_o = (torch.randn(1, tokens, heads, values or width) for _ in range(2))
        beta, g = torch.rand(1, tokens, heads), -0.1 * torch.rand(1, tokens, heads)
        return cls(*(x.to(device, dtype) for x in (q, k, v)), beta.to(device), g.to(device), d_o.to(device, dtype))

    @property
    def all(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.k, self.v, self.beta, self.g


def call(function: Callable, inputs: Inputs, backward: bool, count: int = 5) -> Callable[[], object]:
    """A run of ``function(*first `count` inputs) -> o``, with gradients of all of them where ``backward``."""
    leaves = [x.detach().clone().requires_grad_(backward) for x in inputs.all[:count]]

    def run():
        if not backward:
            with torch.no_grad():
                return function(*leaves)
        out = function(*leaves)
        return torch.autograd.grad(out, leaves, inputs.d_o.view_as(out))

    return run


def ours(backend: str) -> Callable:
    return lambda q, k, v, beta, g=None: delta_rule(q, k, v, beta, g, scale=q.shape[-1] ** -0.5, backend=backend)[0]


def of_transformers(q, k, v, beta, g):
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    return unwrap(torch_chunk_gated_delta_rule)(q, k, v, g, beta)[0]  # the wrapper calls fla where it is installed


def sdpa(q, k, v):
    """On [1, H, T, D], what it is made for; the transposes are views."""
    out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    return out.transpose(1, 2)


def fla_alone(q, k, v, beta, g=None):
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return (chunk_delta_rule(q, k, v, beta) if g is None else chunk_gated_delta_rule(q, k, v, g, beta))[0]


CPU = {
    "native": (ours("native"), 5),
    "PyTorch": (ours("chunk"), 5),
    "transformers": (of_transformers, 5),
    "SDPA": (sdpa, 3),
}
CUDA = {
    "fla through tptt": (ours("fla"), 5),
    "fla alone": (fla_alone, 5),
    "PyTorch": (ours("chunk"), 5),
    "SDPA": (sdpa, 3),
}
PEERS = ("transformers", "SDPA", "fla alone")
BACKEND = {"native": "native", "fla through tptt": "fla", "fla alone": "fla"}  # what a contender needs


def contenders(device: str) -> dict[str, tuple[Callable, int]]:
    """Those that can run here, and how many of `Inputs.all` each takes."""
    known, missing = CUDA if device == "cuda" else CPU, available_backends()
    most = 4 if device == "cuda" and no_gated_gradient() else 5
    chosen = {name: one for name, one in known.items() if missing.get(BACKEND.get(name, "chunk")) is None}
    return {name: (function, min(count, most)) for name, (function, count) in chosen.items()}


def check(device: str, dtype: torch.dtype) -> list[str]:
    """Largest relative error of outputs and gradients against the recurrence in float64; stops where ours are off."""
    inputs = Inputs.random(300, 2, 64, device, dtype)
    exact = Inputs(*(x.double() for x in (*inputs.all, inputs.d_o)))
    naive = ours("naive")
    rows = []
    for name, (function, count) in contenders(device).items():
        if function is sdpa:  # softmax attention is something else
            continue
        want = [naive(*exact.all[:count]), *call(naive, exact, True, count)()]
        got = [function(*inputs.all[:count]), *call(function, inputs, True, count)()]
        error = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))
        rows.append(f"{name} {error:.1e}")
        bound = 1e-5 if dtype == torch.float32 and "fla" not in name else 2e-2
        if name not in PEERS and error > bound:
            raise SystemExit(f"{name} is wrong: relative error {error:.1e}, at most {bound:.0e}")
    return rows


def against_peers(device: str, dtype: torch.dtype, shapes, original: Original | None) -> str:
    """By shape (T, H, D), forward and with the backward."""
    rows = []
    for tokens, heads, width in shapes:
        for backward in (False, True):
            inputs = Inputs.random(tokens, heads, width, device, dtype)
            runs = {n: call(f, inputs, backward, count) for n, (f, count) in contenders(device).items()}
            times = interleaved(runs, 5, device, seconds=40)
            if original and tokens <= 4096:
                times["original"] = original.median(tokens, heads, width, backward)
            rows += _rows(f"T {tokens}, H {heads}, {of_shape(width, backward)}", times)
    return markdown_table(["", "ms", "times transformers", "times SDPA", "times the original", "times fla alone"], rows)


def _rows(title: str, times: dict[str, float]) -> list[list[str]]:
    def ratio(name: str, peer: str) -> str:
        return f"{times[peer] / times[name]:.1f}" if peer in times and name != peer else ""

    peers = ("transformers", "SDPA", "original", "fla alone")
    return [[f"{title}: {n}", f"{1e3 * t:.2f}", *(ratio(n, peer) for peer in peers)] for n, t in times.items()]


def crossover(device: str, dtype: torch.dtype) -> str:
    """Forward and backward over SDPA's time, by length."""
    rows = []
    for tokens in (64, 128, 256, 512, 1024, 2048, 4096):
        inputs = Inputs.random(tokens, 16, 64, device, dtype)
        chosen = {n: c for n, c in contenders(device).items() if n not in ("transformers", "fla alone")}
        times = interleaved({n: call(f, inputs, True, count) for n, (f, count) in chosen.items()}, 9, device)
        rows.append([str(tokens), *(f"{times['SDPA'] / times[n]:.2f}" for n in chosen if n != "SDPA")])
    return markdown_table(["T", *(f"{n}, times SDPA" for n in chosen if n != "SDPA")], rows)


def decays() -> str:
    """Milliseconds by the log decay of every token: strong ones leave subnormal numbers, where nothing prevents them."""
    chosen, rows = {n: f for n, (f, _) in contenders("cpu").items() if f is not sdpa}, []
    for decay in (-0.1, -3.0, -20.0):
        inputs = Inputs.random(4096, 16, 64)
        inputs.g.fill_(decay)
        times = interleaved({n: call(f, inputs, True) for n, f in chosen.items()}, 5)
        rows.append([f"{decay:g}", *(f"{1e3 * t:.0f}" for t in times.values())])
    return markdown_table(["g", *chosen], rows)


def of_shape(width: int, backward: bool) -> str:
    return f"D {width}, {passes(backward)}"


def passes(backward: bool) -> str:
    return "forward + backward" if backward else "forward"


def halves() -> str:
    """Milliseconds with q, k, v and o in bfloat16, and of the kernels also in float32."""
    rows, chosen = [], contenders("cpu")
    for heads, width in SHAPES:
        for backward in (False, True):
            single, half = Inputs.random(4096, heads, width), Inputs.random(4096, heads, width, dtype=torch.bfloat16)
            runs = {n: call(f, half, backward, count) for n, (f, count) in chosen.items()}
            if "native" in chosen:
                runs["native, float32"] = call(chosen["native"][0], single, backward)
            times = interleaved(runs, 5)
            rows.append([of_shape(width, backward), *(f"{1e3 * t:.1f}" for t in times.values())])
    return markdown_table(["", *runs], rows)


def operations(tokens: int, heads: int, keys: int, values: int, backward: bool, chunk: int = 32) -> float:
    """Floating point operations of the chunked form, counted as for full squares within chunks of 32, whatever a form takes.

    Per token and head, forward: reads of k and q and the write of the state 3, A, P, the solve and P u 4 products.
    Backward: the forward again without the reads of q, and 8 products with the state, 8 within the chunk.
    """
    state, of_keys, of_values = 2 * keys * values, 2 * keys * chunk, 2 * values * chunk
    total = 3 * state + 2 * of_keys + 2 * of_values
    if backward:
        total += (2 + 8) * state + (2 + 4) * of_keys + (1 + 4) * of_values
    return tokens * heads * total


def share_of_peak() -> str:
    """Against a product of two 2048 x 2048 matrices in the same run."""
    left, right = (torch.randn(2048, 2048) for _ in range(2))
    chosen = {n: c for n, c in contenders("cpu").items() if n in ("native", "PyTorch")}
    rows = []
    for tokens, heads, keys, values in (*((4096, heads, width, width) for heads, width in SHAPES), WIDE):
        for backward in (False, True):
            inputs = Inputs.random(tokens, heads, keys, values=values)
            runs = {n: call(f, inputs, backward, count) for n, (f, count) in chosen.items()}
            times = interleaved({"sgemm": lambda: left @ right, **runs}, 9)
            peak = 2 * 2048**3 / times.pop("sgemm")
            done = operations(tokens, heads, keys, values, backward)
            shares = (f"{done / t / peak:.0%} ({done / t / 1e9:.0f})" for t in times.values())
            shape = f"T {tokens}, H {heads}, " + (f"K {keys}, V {values}" if keys != values else f"D {keys}")
            rows.append([f"{shape}, {passes(backward)}", f"{peak / 1e9:.0f}", *shares])
    return markdown_table(["", "sgemm, GFLOP/s", *(f"{n}: share (GFLOP/s)" for n in chosen)], rows)


def one_token(tokens: int, batch: int) -> dict[str, float]:
    """Seconds of a step of ``batch`` sequences, H 32, D 128, after a context of ``tokens``."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    of_hf = unwrap(torch_recurrent_gated_delta_rule)
    state = delta_rule(*Inputs.random(tokens, 32, 128).all, output_final_state=True)[1].repeat(batch, 1, 1, 1)
    one = Inputs(*(x.repeat(batch, *[1] * (x.dim() - 1)) for x in vars(Inputs.random(1, 32, 128)).values()))
    target, mine, torchs = (state.clone() for _ in range(3))

    def step():
        return delta_rule_step(*one.all, state=mine, inplace=True)

    def pytorch():
        return delta_rule_step(*one.all, state=torchs, inplace=True, backend="step")

    def transformers():
        return of_hf(one.q, one.k, one.v, one.g, one.beta, initial_state=state, output_final_state=True)

    def copy():
        return target.copy_(state)

    runs = {"delta_rule_step": step, "PyTorch": pytorch, "transformers": transformers, "copying the state": copy}
    with torch.no_grad():
        return interleaved(runs, 15)


def decoding() -> str:
    rows = []
    for tokens, batch in ((1024, 1), (32768, 1), (1024, 8)):
        times = one_token(tokens, batch)
        copy, hf = times["copying the state"], times["transformers"]
        rows += [
            [f"batch {batch}, after {tokens}: {n}", f"{1e6 * t:.0f}", f"{copy / t:.0%}", f"{hf / t:.1f}"]
            for n, t in times.items()
        ]
    return markdown_table(["", "us", "speed of the copy", "times transformers"], rows)


def memory() -> str:
    names = [n for n in ("native", "PyTorch") if n in contenders("cpu")]
    rows = [[n, f"{peak_units(n):.2f}"] for n in names] + [["PyTorch, kda", f"{peak_units('kda'):.2f}"]]
    return markdown_table(["T 32768, H 4, D 64", "H T D floats"], [*rows, ["SDPA", f"{peak_units('SDPA'):.2f}"]])


class Original:
    """A process of its own with the public tptt 0.12.1."""

    def __init__(self, python: str) -> None:
        worker = Path(__file__).with_name("original_worker.py")
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.median(64, 1, 16, False, repeats=1)  # until it has imported everything it takes time from the others

    def median(self, tokens: int, heads: int, width: int, backward: bool, repeats: int = 3) -> float:
        assert self.process.stdin and self.process.stdout
        times = []
        for _ in range(repeats):
            self.process.stdin.write(f"{torch.get_num_threads()} {tokens} {heads} {width} {int(backward)}\n")
            self.process.stdin.flush()
            times.append(float(self.process.stdout.readline()))
        return sorted(times)[len(times) // 2]


def tables(args: argparse.Namespace, dtype: torch.dtype) -> Iterator[str]:
    """What the command prints, as it comes."""
    options = (" --device cuda" if args.device == "cuda" else "") + (" --original PYTHON" if args.original else "")
    yield f"`python -m benchmarks.ops{options}` on {machine(args.device)}."
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
    if args.write:
        write_section(RESULTS, f"Operators, {processor(args.device)}", "\n\n".join(parts))


if __name__ == "__main__":
    main()
