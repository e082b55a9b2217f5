"""Calls that something records, and tensors that do not hold their data: the kernels must not read past them."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from tptt import LinearAttention, MemoryConfig
from tptt.ops import delta_rule, delta_rule_step
from tptt.ops.backends import BACKENDS as KNOWN

from .cases import BACKENDS, KINDS, make_case, native

SERVED = pytest.mark.parametrize("backend", (native, "auto"))


def single(tokens=20, **options):
    return make_case(tokens, **options).to(torch.float32)


@SERVED
@pytest.mark.parametrize("tokens", (1, 20))
def test_fake_tensors(backend, tokens):
    with FakeTensorMode():
        o, state = single(tokens).run(backend)
    assert o.shape == (1, tokens, 2, 8) and state.shape == (1, 2, 16, 8)


@pytest.mark.parametrize("feature_map", ("fourier", "sign_split", "silu"))
def test_a_layer_among_fake_tensors_leaves_later_ones_alone(feature_map):
    config = MemoryConfig(feature_map=feature_map, feature_width=34)
    with FakeTensorMode():
        layer = LinearAttention(64, 2, config=config)
        assert layer(torch.randn(1, 20, 64))[0].shape == (1, 20, 64)
    assert LinearAttention(64, 2, config=config)(torch.randn(1, 20, 64))[0].isfinite().all()


@SERVED
@pytest.mark.filterwarnings("ignore")  # torch.jit says that it ends
@pytest.mark.parametrize("tokens", (1, 20))
@pytest.mark.parametrize(
    "record", (lambda f, q: torch.jit.trace(f, (q,), check_trace=False), lambda f, q: make_fx(f)(q))
)
def test_recorded(backend, tokens, record):
    case = single(tokens)

    def run(q):
        return delta_rule(q, case.k, case.v, case.beta, case.g, initial_state=case.initial_state, backend=backend)[0]

    recorded = record(run, torch.zeros_like(case.q))
    torch.testing.assert_close(recorded(case.q), run(case.q))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_of_what_auto_chooses(kind):
    case = single(40, **KINDS[kind])
    got = torch.compile(lambda c: c.run("auto"), backend="aot_eager")(case)
    for have, want in zip(got, case.run("auto"), strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.filterwarnings("ignore")  # forward mode scripts its decompositions
@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
def test_forward_mode_is_right_or_refused(backend):
    case = single()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(case.v, torch.ones_like(case.v))
        call = replace(case, v=dual)
        if backend == "naive":
            got = forward_ad.unpack_dual(call.run(backend)[0]).tangent
            ones = replace(case, v=torch.ones_like(case.v), initial_state=torch.zeros_like(case.initial_state))
            torch.testing.assert_close(got, ones.run(backend)[0])  # o is linear in v and the state together
        else:
            with pytest.raises(NotImplementedError):
                call.run(backend)


@pytest.mark.parametrize("name", ("q", "k", "v", "beta", "g", "initial_state"))
@pytest.mark.parametrize("tokens", (1, 20))
@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
def test_a_negation_still_to_be_done(backend, tokens, name):
    case = single(tokens)
    want = case.run(backend)
    lazy = case.map(lambda x: torch._neg_view(-x) if x is getattr(case, name) else x)
    assert getattr(lazy, name).is_neg()
    assert all(torch.equal(a, b) for a, b in zip(lazy.run(backend), want, strict=True))


@pytest.mark.parametrize("backend", (native, "auto", "step"))
def test_a_negated_state_is_written_in_place(backend):
    case = single(1)
    want = delta_rule_step(case.q, case.k, case.v, case.beta, case.g, state=case.initial_state)[1]
    lazy = torch._neg_view(-case.initial_state)
    got = delta_rule_step(case.q, case.k, case.v, case.beta, case.g, state=lazy, inplace=True, backend=backend)[1]
    assert got is lazy
    torch.testing.assert_close(lazy.clone(), want)


@pytest.mark.parametrize("backend", ["auto", *(name for name in KNOWN if "inplace" in KNOWN[name].options)])
def test_autograd_knows_of_a_state_written_in_place(backend):
    if backend == "native" and KNOWN["native"].supports(None):
        pytest.skip("no kernels here")
    case = single(1)
    state, weight = case.initial_state.clone(), torch.ones_like(case.initial_state).requires_grad_()
    kept = (weight * state).sum()
    with torch.no_grad():
        delta_rule_step(case.q, case.k, case.v, case.beta, case.g, state=state, inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()
