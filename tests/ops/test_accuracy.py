"""Every backend against the float64 recurrence: outputs, final state and all gradients."""

from dataclasses import replace
from inspect import unwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tptt.ops.step import step_recurrence

from .cases import BACKENDS, KINDS, assert_close, make_case, native, reference, results, serve

LENGTHS = (1, 2, 63, 64, 65, 127)


def check(case, backend, dtype=torch.float32, value=1e-6, gradient=1e-5, **options):
    """`backend` in `dtype` against the reference on the same, rounded inputs."""
    case = serve(backend, case)[0].to(dtype)
    got = results(case, lambda c: c.run(backend, **options))
    assert got["o"].dtype == dtype
    assert got["state"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(got, results(case.to(torch.float64), reference), value, gradient)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
def test_float32(backend, tokens, kind):
    check(make_case(tokens, batch=2, **KINDS[kind]), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_step(kind):
    check(make_case(1, batch=2, groups=3, **KINDS[kind]), "step")
    check(make_case(1, batch=2, groups=3, state=False, **KINDS[kind]), "step")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ("step", native))
def test_one_token_without_gradients(backend, kind):
    for state in (False, True):
        case = serve(backend, make_case(1, batch=2, groups=3, state=state, **KINDS[kind]))[0].to(torch.float32)
        with torch.no_grad():
            got = dict(zip(("o", "state"), case.run(backend), strict=True))
        assert_close(got, dict(zip(("o", "state"), reference(case), strict=True)))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kind", KINDS)
def test_step_overwrites_only_in_place(kind, dtype):
    case = make_case(1, batch=2, groups=3, **KINDS[kind]).to(dtype)
    state = case.initial_state.float().transpose(0, 1).contiguous().transpose(0, 1)
    arguments = (case.q, case.k, case.v, case.beta, case.g)
    options = {"scale": 0.7, "initial_state": state, "delta": case.delta}
    before = state.clone()
    with torch.no_grad():
        want_o, want = step_recurrence(*arguments, **options)
        assert torch.equal(state, before)
        o, after = step_recurrence(*arguments, **options, inplace=True)
    assert after is state and o.dtype == dtype and torch.equal(o, want_o) and torch.equal(after, want)


@pytest.mark.parametrize(
    "shape", ({"key_width": 64, "value_width": 32}, {"key_width": 64, "value_width": 64, "heads": 1})
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ("chunk", native))
def test_long(backend, shape, kind):
    check(make_case(1000, **shape, **KINDS[kind]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_initial_state(backend):
    check(make_case(70, state=False), backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ("naive", "chunk"))
def test_float64(backend, kind):
    check(make_case(70, groups=2, **KINDS[kind]), backend, torch.float64, 1e-14, 1e-14)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("backend", ("naive", "chunk"))
def test_half_precision(backend, dtype):
    for kind in ("kda", "product"):
        check(make_case(100, groups=2, **KINDS[kind]), backend, dtype, 1e-2, 2e-2)
    # beta, g and the state usually stay float32 beside half precision q, k, v
    case = make_case(100, groups=2)
    check(case, backend, dtype, 1e-2, 2e-2)
    mixed = replace(case.to(dtype), beta=case.beta.float(), g=case.g.float(), initial_state=case.initial_state.float())
    got = results(mixed, lambda c: c.run(backend))
    assert got["o"].dtype == got["d_q"].dtype == dtype and got["d_beta"].dtype == torch.float32
    assert_close(got, results(mixed.to(torch.float64), reference), 1e-2, 2e-2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 80),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    key_width=st.integers(1, 20),
    value_width=st.integers(1, 20),
    decay=st.sampled_from((0, 0.01, 1.0, 20.0)),
    state=st.booleans(),
    chunk_size=st.sampled_from((None, 1, 2, 8, 64)),
    steps=st.integers(1, 3),
    channels=st.booleans(),
    delta=st.booleans(),
)
def test_any_shape(chunk_size, **shape):
    check(make_case(**shape), "chunk", torch.float64, 1e-12, 1e-12, chunk_size=chunk_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ("naive", "chunk", "step"))
def test_gradcheck(backend, kind):
    case = make_case(1 if backend == "step" else 5, groups=2, key_width=3, value_width=2, **KINDS[kind])
    inputs = [x.requires_grad_() for x in case.tensors().values()]

    def run(*tensors):
        return replace(case, **dict(zip(case.tensors(), tensors, strict=True))).run(backend, chunk_size=2)

    assert torch.autograd.gradcheck(run, inputs)


def test_transformers():
    """Against code that shares nothing with ours. It scales by K ** -0.5 and returns the value's dtype."""
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    case = make_case(65, batch=2).to(torch.float32)
    recurrent = unwrap(module.torch_recurrent_gated_delta_rule)  # the wrapper calls fla where it is installed
    o, state = recurrent(
        case.q, case.k, case.v, case.g, case.beta, initial_state=case.initial_state, output_final_state=True
    )
    for backend in ("naive", "chunk", "auto"):
        got_o, got_state = case.run(backend, scale=case.k.shape[3] ** -0.5)
        torch.testing.assert_close(got_o, o, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got_state, state, rtol=1e-5, atol=1e-5)
