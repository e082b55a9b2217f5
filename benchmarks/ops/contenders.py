"""What is timed: the operators and their peers, and inputs for them.

Legend: T tokens, H heads, K and V width of keys and values, D of both.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path

import torch
from torch.nn.functional import normalize, scaled_dot_product_attention

from tptt.ops import available_backends, delta_rule
from tptt.ops.fla import no_gated_gradient


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


class Original:
    """A process of its own with the public tptt 0.12.1."""

    def __init__(self, python: str) -> None:
        worker = Path(__file__).with_name("original_worker.py")
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
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
