"""The operators on a CUDA device: PyTorch's forms in float32, fla-core's kernels in half precision."""

from dataclasses import replace

import pytest
import torch

from tptt.ops import available_backends, backend_for
from tptt.ops.backends import BACKENDS
from tptt.ops.call import Inputs
from tptt.ops.spec import Spec

from .cases import KINDS, assert_close, make_case, reference, results

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # fla and Triton warn as they like
needs_fla = pytest.mark.skipif(bool(available_backends()["fla"]), reason=available_backends()["fla"] or "")


def check(case, backend, value, gradient):
    """`case` on the device against the reference on the CPU."""
    got = results(case, lambda c: tuple(x.cpu() for x in c.map(lambda x: x.cuda()).run(backend)))
    assert_close(got, results(case.to(torch.float64), reference), value, gradient)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", (1, 65))
@pytest.mark.parametrize("backend", ("naive", "chunk", "auto"))
def test_float32(backend, tokens, kind):
    check(make_case(tokens, batch=2, groups=2, **KINDS[kind]).to(torch.float32), backend, 2e-6, 1e-5)


def half(tokens, kind, groups=2):
    """A case for fla: bfloat16, the state float32; and whether each of it needs a gradient."""
    case = make_case(tokens, groups=groups, key_width=64, value_width=64, **KINDS[kind]).to(torch.bfloat16)
    return replace(case, initial_state=case.initial_state.float())


def served(case, needs_grad):
    """`case` on the device; skips what fla does not serve."""
    case = case.map(lambda x: x.cuda().requires_grad_(needs_grad))
    spec = Spec.of(Inputs(case.q, case.k, case.v, case.beta, case.g), case.initial_state, case.delta)
    reason = BACKENDS["fla"].supports(spec)
    if reason:
        pytest.skip(reason)
    return case


@needs_fla
@pytest.mark.parametrize("kind", KINDS)
def test_fla_forward(kind):
    case = half(127, kind)
    with torch.no_grad():
        got = served(case, False).run("fla")
        o, nothing = served(case, False).run("fla", output_final_state=False)
    assert nothing is None
    torch.testing.assert_close(o, got[0])
    for have, want in zip(got, reference(case), strict=True):
        assert (have.cpu().double() - want).norm() <= 1e-2 * want.norm()


@needs_fla
@pytest.mark.parametrize("kind", KINDS)
def test_fla_gradients(kind):
    case = half(127, kind)
    served(case, True)
    check(case, "fla", 1e-2, 2e-2)


@needs_fla
@pytest.mark.parametrize("kind", KINDS)
def test_fla_steps_equal_its_chunks(kind):
    case = served(half(24, kind), False)
    outputs, state = [], case.initial_state
    for t in range(24):
        o, state = case.tokens(t, t + 1, state).run("auto")
        outputs.append(o)
    want_o, want_state = case.run("auto")
    torch.testing.assert_close(torch.cat(outputs, 1), want_o, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state, want_state, rtol=2e-2, atol=2e-2)


@needs_fla
def test_fla_serves_half_precision_by_itself():
    call = {"tokens": 1000, "key_width": 64, "device": "cuda", "needs_grad": True}
    assert backend_for(**call, dtype=torch.bfloat16).name == "fla"
    name, refusals = backend_for(**call, dtype=torch.float32)
    assert name == "chunk" and "float32" in refusals["fla"]
