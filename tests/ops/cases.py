"""Inputs, an independent float64 loop, and the comparison used by all tests of the operators."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import normalize

from tptt.ops import available_backends, delta_rule, linear_attention

NAMES = ("q", "k", "v", "beta", "g", "initial_state")
KINDS = {
    "delta": {"decay": 0},
    "gated delta": {},
    "kda": {"channels": True},
    "product": {"decay": 0, "steps": 2},
    "gated product": {"steps": 3},
    "linear": {"decay": 0, "delta": False},
    "linear without beta": {"decay": 0, "delta": False, "strength": False},
    "gated linear": {"delta": False},
    "gated linear per channel, two writes": {"delta": False, "channels": True, "steps": 2},
}
"""Every recurrence, as arguments of `make_case`."""

native = pytest.param(
    "native", marks=pytest.mark.skipif(bool(available_backends()["native"]), reason="no kernels here")
)
BACKENDS = ("naive", "chunk", native)


def serve(backend, case):
    """`case` in a precision and of a kind that `backend` serves, and the relative error that two ways to compute the
    same may have; skips what it does not serve."""
    if backend not in ("native", "auto"):
        return case, 1e-13
    if backend == "native" and case.g is not None and case.g.dim() == 4:
        pytest.skip("the kernels have no decay per channel")
    return case.to(torch.float32), 2e-6


@dataclass(frozen=True)
class Case:
    """Arguments of an operator. q [B, T, G*H, K], k [B, T, (N,) H, K], v [B, T, (N,) H, V], beta [B, T, (N,) H] or
    None, g [B, T, H] or [B, T, H, K] or None, initial_state [B, H, K, V] or None."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor | None
    g: torch.Tensor | None
    initial_state: torch.Tensor | None
    delta: bool = True

    def tensors(self):
        return {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}

    def map(self, function):
        return replace(self, **{name: function(x) for name, x in self.tensors().items()})

    def to(self, dtype):
        return self.map(lambda x: x.to(dtype))

    def tokens(self, start, stop, initial_state):
        """The same case from token `start` to `stop`, starting from `initial_state`."""
        cut = {name: x[:, start:stop] for name, x in self.tensors().items() if name != "initial_state"}
        return replace(self, **cut, initial_state=initial_state)

    def run(self, backend, **options):
        """(o, final state)."""
        arguments = (self.q, self.k, self.v, self.beta, self.g)
        given = {"scale": 0.7, "initial_state": self.initial_state, "backend": backend, "output_final_state": True}
        operator = delta_rule if self.delta else linear_attention
        return operator(*arguments, **given | options)


def make_case(
    tokens,
    batch=1,
    heads=2,
    groups=1,
    key_width=16,
    value_width=8,
    decay=0.1,
    state=True,
    seed=0,
    steps=1,
    channels=False,
    delta=True,
    strength=True,
):
    """Random float64 case with unit queries and keys; `decay` is the size of -g, 0 for none; `steps` > 1 writes per
    token; `channels`: a decay of its own for each; `delta` False is linear attention, `strength` False without beta."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    several = (batch, tokens, steps, heads) if steps > 1 else (batch, tokens, heads)
    return Case(
        q=normalize(normal(batch, tokens, groups * heads, key_width), dim=-1),
        k=normalize(normal(*several, key_width), dim=-1),
        v=normal(*several, value_width),
        beta=normal(*several).sigmoid() if strength else None,
        g=-decay * normal(batch, tokens, heads, *([key_width] if channels else [])).abs() if decay else None,
        initial_state=normal(batch, heads, key_width, value_width) if state else None,
        delta=delta,
    )


def reference(case, scale=0.7):
    """(o, state) by the recurrence of src/tptt/ops/README.md, "What is computed", in float64; queries read the state of
    their group."""
    case = case.to(torch.float64)
    batch, tokens, *_, heads, key_width = case.k.shape
    groups = case.q.shape[2] // heads
    k, v, beta = (x if x is None or case.k.dim() == 5 else x.unsqueeze(2) for x in (case.k, case.v, case.beta))
    state = case.initial_state
    if state is None:
        state = torch.zeros(batch, heads, key_width, case.v.shape[-1], dtype=torch.float64)
    outputs = []
    for t in range(tokens):
        if case.g is not None:
            per_channel = case.g[:, t] if case.g.dim() == 4 else case.g[:, t].unsqueeze(2).expand(-1, -1, key_width)
            state = torch.einsum("bhk,bhkv->bhkv", per_channel.exp(), state)
        for j in range(k.shape[2]):
            write = v[:, t, j]
            if case.delta:
                write = write - torch.einsum("bhkv,bhk->bhv", state, k[:, t, j])
            strength = torch.ones(batch, heads, dtype=torch.float64) if beta is None else beta[:, t, j]
            state = state + torch.einsum("bh,bhk,bhv->bhkv", strength, k[:, t, j], write)
        read = state.repeat_interleave(groups, 1)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", read, case.q[:, t]))
    return torch.stack(outputs, 1), state


def results(case, run):
    """Output, final state and the gradient of a fixed random loss on both, of every input."""
    case = case.map(lambda x: x.detach().clone().requires_grad_())
    o, state = run(case)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (o, state)]
    ((o.double() * weights[0]).sum() + (state.double() * weights[1]).sum()).backward()
    grads = {f"d_{name}": x.grad for name, x in case.tensors().items()}
    return {"o": o.detach(), "state": state.detach()} | grads


def assert_close(got, expected, value=1e-6, gradient=1e-5):
    """Relative error in the 2-norm, per tensor, of two `results`; a tensor that should be zero must be zero."""
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        have = got[name].double()
        assert have.shape == want.shape, f"{name}: shape {have.shape}, expected {want.shape}"
        assert have.isfinite().all(), f"{name} is not finite"
        error, size = (have - want.double()).norm(), want.double().norm()
        bound = gradient if name.startswith("d_") else value
        assert error <= bound * size, f"{name}: relative error {error / size:.1e}, at most {bound:.0e}"
