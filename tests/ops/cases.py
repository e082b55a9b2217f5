"""Inputs, an independent float64 loop, and the comparison used by all tests of the operators."""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import normalize

from tptt.ops import delta_rule

NAMES = ("q", "k", "v", "beta", "g", "initial_state")


@dataclass(frozen=True)
class Case:
    """Arguments of delta_rule. q [B, T, G*H, K], k [B, T, H, K], v [B, T, H, V], beta and g [B, T, H], state [B, H, K, V]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    beta: torch.Tensor
    g: torch.Tensor | None
    initial_state: torch.Tensor | None

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
        options = {"scale": 0.7, "initial_state": self.initial_state, "backend": backend} | options
        return delta_rule(*arguments, output_final_state=True, **options)


def make_case(tokens, batch=1, heads=2, groups=1, key_width=16, value_width=8, decay=0.1, state=True, seed=0):
    """Random float64 case with unit queries and keys; `decay` is the size of -g, 0 for none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Case(
        q=normalize(normal(batch, tokens, groups * heads, key_width), dim=-1),
        k=normalize(normal(batch, tokens, heads, key_width), dim=-1),
        v=normal(batch, tokens, heads, value_width),
        beta=normal(batch, tokens, heads).sigmoid(),
        g=-decay * normal(batch, tokens, heads).abs() if decay else None,
        initial_state=normal(batch, heads, key_width, value_width) if state else None,
    )


def reference(case, scale=0.7):
    """(o, state) by the recurrence as MATH.md states it, in float64; queries see keys and values repeated per group."""
    case = case.to(torch.float64)
    groups = case.q.shape[2] // case.k.shape[2]
    batch, tokens, heads, key_width = case.k.shape
    state = case.initial_state
    if state is None:
        state = torch.zeros(batch, heads, key_width, case.v.shape[3], dtype=torch.float64)
    outputs = []
    for t in range(tokens):
        if case.g is not None:
            state = torch.einsum("bh,bhkv->bhkv", case.g[:, t].exp(), state)
        error = case.v[:, t] - torch.einsum("bhkv,bhk->bhv", state, case.k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", case.beta[:, t], case.k[:, t], error)
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
