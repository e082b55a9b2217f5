"""The tables: each times its contenders in turns, on inputs of its own.

Legend: T tokens, H heads, K and V width of keys and values, D of both.
"""

from __future__ import annotations

from inspect import unwrap

import torch

from benchmarks.timing import interleaved
from tptt.evaluation.tables import markdown_table
from tptt.ops import delta_rule, delta_rule_step

from .contenders import Inputs, Original, call, contenders, sdpa
from .memory import peak_units

SHAPES = ((16, 64), (8, 128))  # H, D
WIDE = (2048, 4, 2048, 64)  # T, H, K, V, as the default memory's


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
    """Milliseconds by the log decay of every token: strong ones leave subnormal numbers, where nothing prevents
    them."""
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
    """Floating point operations of the chunked form, counted as for full squares within chunks of 32, whatever a form
    takes.

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
