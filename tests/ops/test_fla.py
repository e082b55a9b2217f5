"""What tptt hands to fla-core and makes of its answers, with the definition in fla's place: no GPU, no fla needed."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from tptt.ops.call import Inputs
from tptt.ops.fla import RECURRENT_UP_TO, fla_recurrence
from tptt.ops.naive import naive_recurrence

from .cases import KINDS, assert_close, make_case, reference, results

POSITIONAL = {  # module of fla.ops: function: what follows q, k and v in it (fla-core 0.6.0)
    "delta_rule": {"chunk_delta_rule": ("beta",)},
    "gated_delta_rule": {"chunk_gated_delta_rule": ("g", "beta"), "fused_recurrent_gated_delta_rule": ("g", "gk")},
    "gated_delta_product": {"chunk_gated_delta_product": ("g", "beta")},
    "kda": {"chunk_kda": ("g", "beta")},
    "gla": {"chunk_gla": ("g",), "fused_recurrent_gla": ("gk",)},
    "simple_gla": {"chunk_simple_gla": ("g",), "fused_recurrent_simple_gla": ("g",)},
}
PER_CHANNEL = ("chunk_kda", "chunk_gla")  # whose "g" is one per channel
SERVED = [kind for kind, given in KINDS.items() if given.get("steps", 1) == 1 or given.get("delta", True)]


def stand_in(name, order, called):
    def function(q, k, v, *more, scale, initial_state, output_final_state, num_householder=1, **named):
        called.append(name)
        named |= dict(zip(order, more, strict=False))
        gates, beta = [named.pop(gate, None) for gate in ("g", "gk")], named.pop("beta", None)
        g = gates[0] if gates[1] is None else gates[1]
        assert None in gates and (g is None or g.dim() == (3 if gates[1] is None and name not in PER_CHANNEL else 4))
        assert not named, f"{name} has no {sorted(named)}"
        assert q.shape[2] == k.shape[2] == v.shape[2], "fla has one head count"
        assert all(x.is_contiguous() for x in (q, k, v))
        assert all(x is None or x.dtype == torch.float32 for x in (g, initial_state))
        k, v, beta = (x if x is None else x.unflatten(1, (-1, num_householder)) for x in (k, v, beta))
        delta = "delta" in name or "kda" in name
        o, state = naive_recurrence(q, k, v, beta, g, scale=scale, initial_state=initial_state, delta=delta)
        return o, state if output_final_state else None

    return function


@pytest.fixture
def called(monkeypatch):
    """The names of fla's functions, as they are called."""
    names = []
    for module, functions in POSITIONAL.items():
        made = ModuleType(f"fla.ops.{module}")
        for name, order in functions.items():
            setattr(made, name, stand_in(name, order, names))
        monkeypatch.setitem(sys.modules, made.__name__, made)
    for package in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    return names


def through_fla(case, bare, **options):
    inputs = Inputs(case.q, case.k, case.v, case.beta, case.g)
    given = {"scale": 0.7, "initial_state": case.initial_state, "delta": case.delta}
    return fla_recurrence(*(inputs if bare else inputs.with_writes()), **given, **options)


@pytest.mark.parametrize("bare", (True, False))
@pytest.mark.parametrize("groups", (1, 3))
@pytest.mark.parametrize("kind", SERVED)
def test_equals_the_definition(called, kind, groups, bare):
    case = make_case(RECURRENT_UP_TO + 3, batch=2, groups=groups, **KINDS[kind]).to(torch.float32)
    got = results(case, lambda c: through_fla(c, bare, needs_grad=True))
    assert_close(got, results(case.to(torch.float64), reference), 2e-6, 1e-5)
    assert len(called) == 1 and called[0].startswith("chunk_")


@pytest.mark.parametrize("kind", SERVED)
def test_few_tokens_without_gradients_and_state(called, kind):
    case = make_case(RECURRENT_UP_TO, groups=2, **KINDS[kind]).to(torch.float32)
    o, state = through_fla(case, True)
    want_o, want_state = reference(case)
    torch.testing.assert_close(o.double(), want_o, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), want_state, rtol=1e-5, atol=1e-5)
    assert called[0].startswith("fused_recurrent_") or case.k.dim() == 5  # of several writes fla has only chunks
    alone, nothing = through_fla(replace(case, initial_state=None), True, output_final_state=False)
    assert nothing is None
    torch.testing.assert_close(alone.double(), reference(replace(case, initial_state=None))[0], rtol=1e-5, atol=1e-5)
