"""What is the kernels' own: their instruction sets, the operators of torch.library, sizes that fill no vector."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tptt.ops import available_backends, delta_rule, delta_rule_step
from tptt.ops.call import Inputs
from tptt.ops.native import Parameters, fourier, fourier_backward, library, memory_step, operators, sizes

from .cases import KINDS, assert_close, make_case, reference, results

pytestmark = pytest.mark.skipif(bool(available_backends()["native"]), reason="no kernels here")
SCALAR = {name: kind for name, kind in KINDS.items() if not kind.get("channels")}


def check(case, value=1e-6, gradient=1e-5):
    got = results(case, lambda c: c.run("native"))
    assert_close(got, results(case.to(torch.float64), reference), value, gradient)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 140),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    key_width=st.integers(1, 40),
    value_width=st.integers(1, 40),
    decay=st.sampled_from((0, 0.01, 1.0)),
    state=st.booleans(),
    steps=st.sampled_from((1, 2, 3, 5, 9)),
    delta=st.booleans(),
    strength=st.booleans(),
    precision=st.sampled_from(((torch.float32, 1e-5), (torch.bfloat16, 2e-2))),
)
def test_any_shape(precision, **shape):
    dtype, bound = precision
    case = make_case(**shape | {"strength": shape["strength"] or shape["delta"]}).to(dtype)
    got, want = results(case, lambda c: c.run("native")), results(case.to(torch.float64), reference)
    alone = dict(zip(("o", "state"), case.run("native"), strict=True))
    for found in (got, alone):  # a forward without a backward has chunks of its own
        for name, x in found.items():  # a tensor of a few numbers that nearly cancel has no relative error
            expected = want[name]
            assert (x.double() - expected).norm() <= bound * max(expected.norm(), expected.numel() ** 0.5), name


@pytest.mark.parametrize("kind", SCALAR)
def test_bfloat16(kind):
    check(make_case(100, groups=2, **SCALAR[kind]).to(torch.bfloat16), 1e-2, 2e-2)


@pytest.mark.parametrize("kind", SCALAR)
def test_the_state_of_bfloat16_inputs_is_float(kind):
    """Its products take 16 bits of it at least, not bfloat16's 8."""
    case = make_case(500, key_width=64, value_width=64, **SCALAR[kind])
    case = replace(case, q=case.q.bfloat16(), k=case.k.bfloat16(), v=case.v.bfloat16())
    got, want = case.run("native")[1], reference(case)[1]
    assert (got - want).norm() <= 2e-5 * want.norm()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kind", SCALAR)
def test_what_the_forward_keeps_changes_nothing(kind, dtype, monkeypatch):
    """A long call computes its chunks again, a short one keeps what it has."""
    case = make_case(130, groups=3, batch=2, key_width=40, value_width=20, **SCALAR[kind]).to(dtype)
    kept = results(case, lambda c: c.run("native"))
    monkeypatch.setattr(sizes, "KEPT_BYTES", 0)
    for name, x in results(case, lambda c: c.run("native")).items():
        assert torch.equal(x, kept[name]), name


@pytest.mark.parametrize("key_width", (504, 512, 520, 2048))
def test_what_the_forward_keeps_of_wide_keys_is_right(key_width, monkeypatch):
    """Their rows are padded in another way, which the room for what is kept goes by."""
    case = make_case(70, groups=3, heads=1, key_width=key_width, value_width=24, decay=0).to(torch.float32)
    shape = sizes.saved_shape(Inputs(case.q, case.k, case.v, case.beta, case.g))
    assert len(shape) == 4  # what every chunk needs; states of chunk groups would have five axes
    check(case)
    kept = results(case, lambda c: c.run("native"))
    monkeypatch.setattr(sizes, "KEPT_BYTES", 0)
    for name, x in results(case, lambda c: c.run("native")).items():
        assert torch.equal(x, kept[name]), name


@pytest.mark.parametrize("keep", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kind", SCALAR)
def test_a_state_that_is_not_there_is_zero(kind, dtype, keep, monkeypatch):
    """Neither read nor made where none is given or asked for: the same numbers as with zeros, and a state nobody
    uses."""
    if not keep:
        monkeypatch.setattr(sizes, "KEPT_BYTES", 0)
    for tokens in (1, 32, 33, 300):
        case = make_case(tokens, groups=3, batch=2, key_width=40, value_width=20, state=False, **SCALAR[kind]).to(dtype)
        zeros = replace(case, initial_state=torch.zeros(2, 2, 40, 20))
        both = results(zeros, lambda c: c.run("native"))
        both.pop("d_initial_state")
        for name, x in results(case, lambda c: c.run("native")).items():
            assert torch.equal(x, both[name]), name
        without = results(case, lambda c: (c.run("native", output_final_state=False)[0], torch.zeros(1)))
        for name, x in results(zeros, lambda c: (c.run("native")[0], torch.zeros(1))).items():
            assert name == "d_initial_state" or torch.equal(x, without[name]), name


@pytest.mark.parametrize("kind", SCALAR)
def test_many_steps_equal_one_call(kind):
    case = make_case(30, groups=3, key_width=40, value_width=20, **SCALAR[kind]).to(torch.float32)
    outputs, state = [], case.initial_state
    for t in range(30):
        o, state = case.tokens(t, t + 1, state).run("native")
        outputs.append(o)
    want_o, want_state = case.run("native")
    torch.testing.assert_close(torch.cat(outputs, 1), want_o, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, want_state, rtol=1e-5, atol=1e-5)


def test_step_in_place_on_any_strides():
    case = make_case(1).to(torch.float32)
    want = case.initial_state.clone()
    delta_rule_step(case.q, case.k, case.v, case.beta, state=want, inplace=True)
    state = case.initial_state.transpose(2, 3).contiguous().transpose(2, 3)
    _, returned = delta_rule_step(case.q, case.k, case.v, case.beta, state=state, inplace=True)
    assert returned is state
    torch.testing.assert_close(state, want)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name, value", [("v", torch.nan), ("k", torch.inf)])
def test_what_is_not_finite_shows(name, value, dtype):
    case = make_case(40).to(dtype)
    x = getattr(case, name).clone()
    x[:, 20] = value
    o = replace(case, **{name: x}).run("native")[0]
    assert o[:, :20].isfinite().all() and o[:, 20:].isnan().any(-1).all()


@pytest.mark.parametrize("value_width", (5, 8, 64))
@pytest.mark.parametrize("tokens", (1, 13, 40))
def test_what_is_not_finite_stays_in_its_head(tokens, value_width):
    case = make_case(tokens, batch=3, heads=9, key_width=17, value_width=value_width).to(torch.float32)
    case.k[1, 0, 4] = torch.nan
    for name, x in results(case, lambda c: c.run("native")).items():
        heads = x if "state" in name else x.transpose(1, 2)  # [B, H, ...]
        of_other_heads = torch.ones(heads.shape[:2], dtype=torch.bool)
        of_other_heads[1, 4] = False
        assert heads[of_other_heads].isfinite().all(), name


@pytest.mark.parametrize("kind", ("delta", "gated product", "linear without beta"))
def test_opcheck(kind):
    case = make_case(9, batch=2, groups=2, **SCALAR[kind]).to(torch.float32)
    k, v, beta = (x if x is None or case.k.dim() == 5 else x.unsqueeze(2) for x in (case.k, case.v, case.beta))
    inputs = [None if x is None else x.requires_grad_() for x in (case.q, k, v, beta, case.g, case.initial_state)]
    for start, final in ((inputs[5], True), (None, False)):
        rest = (start, 0.7, case.delta, True, final)
        torch.library.opcheck(operators.recurrence, (*inputs[:5], *rest))
        with torch.no_grad():
            o, state, saved = operators.recurrence(*inputs[:5], *rest)
            d_state = torch.ones_like(state) if final else None
            rest = (saved, torch.ones_like(o), d_state, 0.7, case.delta, start is not None)
            torch.library.opcheck(operators.recurrence_backward, (*inputs[:5], *rest))
    with torch.no_grad():
        one = [None if x is None else x[:, :1].detach() for x in inputs[:5]]
        torch.library.opcheck(operators.recurrence_step, (*one, case.initial_state.detach().clone(), 0.7, case.delta))


@pytest.mark.filterwarnings("ignore")  # the compiler raises warnings that it hides itself, unless they are errors
@pytest.mark.parametrize("tokens", (1, 40))
@pytest.mark.parametrize("state", (True, False))
def test_torch_compile_sees_through(tokens, state):
    def run(c):
        o, final = c.run("native", output_final_state=state)
        return 2 * o, final if state else o.new_zeros(1)

    case = make_case(tokens, state=state).to(torch.float32)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert_close(results(case, compiled), results(case, run), 0, 0)
    with torch.no_grad():
        for got, want in zip(compiled(case), run(case), strict=True):
            assert torch.equal(got, want)


def test_no_second_derivative():
    case = make_case(10).to(torch.float32)
    case.v.requires_grad_()
    (grad,) = torch.autograd.grad(case.run("native")[0].square().sum(), case.v, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize("key_width, value_width", ((32, 32), (256, 256), (1024, 16), (16, 512)))
def test_memory_grows_by_chunk_groups_not_tokens(key_width, value_width, monkeypatch):
    monkeypatch.setattr(sizes, "KEPT_BYTES", 1 << 20)
    case = make_case(4608, heads=1, key_width=key_width, value_width=value_width, state=False).to(torch.float32)
    k, v, beta = (x[:, :, None] for x in (case.k, case.v, case.beta))
    saved = operators.recurrence(case.q, k, v, beta, case.g, None, 1.0, True, True, True)[2]
    assert 0 < saved.numel() <= max(k.numel(), v.numel()) / 3


@pytest.fixture
def in_threads():
    """`function()` on three threads; they share no working space."""
    before = torch.get_num_threads()

    def run(function):
        torch.set_num_threads(3)
        try:
            return function()
        finally:
            torch.set_num_threads(before)

    return run


@pytest.mark.parametrize("tokens", (1, 70, 600))
def test_threads_change_nothing(in_threads, tokens):
    case = make_case(tokens, batch=3, heads=5).to(torch.float32)
    want = results(case, lambda c: c.run("native"))
    assert_close(in_threads(lambda: results(case, lambda c: c.run("native"))), want, 0, 0)
    alone = case.run("native")
    assert all(torch.equal(x, y) for x, y in zip(in_threads(lambda: case.run("native")), alone, strict=True))


def test_threads_change_no_features(in_threads):
    z, frequencies = torch.nn.functional.normalize(torch.randn(300, 16), dim=-1), torch.randn(50, 16)
    out, weights = fourier(z, frequencies), torch.randn(300, 100)
    assert torch.equal(in_threads(lambda: fourier(z, frequencies)), out)
    gradient = fourier_backward(out, weights, frequencies)
    assert torch.equal(in_threads(lambda: fourier_backward(out, weights, frequencies)), gradient)


@pytest.mark.parametrize("mixing_width", (None, 7))
def test_threads_change_no_memory_step(in_threads, mixing_width):
    heads, width, hidden_width = 6, 8, 20
    q, k, v = (torch.randn(3, 1, heads, width) for _ in range(3))
    hidden, softmax = torch.randn(3, 1, hidden_width), torch.randn(3, 1, heads * width)
    down = None if mixing_width is None else torch.randn(mixing_width, hidden_width)
    gates = torch.randn(heads, hidden_width), torch.randn(heads), torch.randn(heads, hidden_width), torch.randn(heads)
    mixing = torch.randn(heads, mixing_width or hidden_width), torch.randn(heads), down
    learned = Parameters(None, None, *gates, *mixing, None, torch.randn(heads, width), torch.tensor(0.4))
    first = torch.randn(3, heads, width, width)

    def step():
        state = first.clone()
        return memory_step(q, k, v, hidden, softmax, state, learned, True, "silu"), state

    want = step()
    assert want[0].isfinite().all() and not torch.equal(want[1], first)
    assert all(torch.equal(x, y) for x, y in zip(in_threads(step), want, strict=True))


def test_subnormal_numbers_are_zero_inside_and_remain_outside():
    case, small = make_case(40).to(torch.float32), torch.full((100_000,), 1e-39)
    nothing, decay = torch.zeros_like(case.beta), torch.full_like(case.g, -0.2)  # to 3e-4 in 40 tokens
    silent = replace(case, beta=nothing, g=decay, initial_state=torch.full_like(case.initial_state, 1e-36))
    assert (silent.run("naive")[1] > 0).all() and (silent.run("native")[1] == 0).all()
    state = torch.full_like(case.initial_state, 1e-39)
    delta_rule_step(*(x[:, :1] for x in (case.q, case.k, case.v, nothing)), state=state, inplace=True)
    assert (state == 0).all()
    assert (small * 0.5 != 0).all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_large_outputs(dtype):
    """They go past the caches, those of a head alone do not."""
    case = make_case(16384, heads=32, key_width=32, value_width=32, decay=0.01).to(dtype)
    alone = replace(case, **{n: x[:, :1] if n == "initial_state" else x[:, :, :1] for n, x in case.tensors().items()})
    weights = torch.randn(1, 16384, 32, 32).to(dtype)

    def run(c, weights):
        c = c.map(lambda x: x.detach().clone().requires_grad_())
        o = c.run("native")[0]
        o.backward(weights)
        return o, c.q.grad, c.k.grad, c.v.grad

    for got, want in zip(run(case, weights), run(alone, weights[:, :, :1]), strict=True):
        assert torch.equal(got[:, :, :1], want)


@pytest.mark.parametrize("heads", (2, 5, 9))
def test_heads_that_are_worked_on_together(heads):
    """Over several chunk groups, each as if it were the only one."""
    case = make_case(1100, heads=heads, batch=2, decay=0.01).to(torch.float32)

    def alone(c):
        found = []
        for h in range(heads):
            q, k, v, beta, g = (x[:, :, h : h + 1] for x in (c.q, c.k, c.v, c.beta, c.g))
            one = replace(c, q=q, k=k, v=v, beta=beta, g=g, initial_state=c.initial_state[:, h : h + 1])
            found.append(one.run("native"))
        return torch.cat([o for o, _ in found], 2), torch.cat([state for _, state in found], 1)

    assert_close(results(case, lambda c: c.run("native")), results(case, alone), 0, 0)


FEATURES = [(1, 16, 5), (33, 32, 48), (70, 48, 130)]


@pytest.mark.parametrize("rows, height, count", FEATURES)
def test_fourier_features(rows, height, count):
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(rows, height, generator=generator), dim=-1)
    frequencies = 9 * torch.randn(count, height, generator=generator)
    weights = torch.randn(rows, 2 * count, generator=generator)
    exact = z.double().requires_grad_()
    angles = exact @ frequencies.double().T
    want = torch.cat([angles.cos(), angles.sin()], -1) * count**-0.5
    (gradient,) = torch.autograd.grad((want * weights.double()).sum(), exact)
    got = fourier(z, frequencies)
    assert (got - want).norm() < 5e-6 * want.norm()  # angles of 30 have float32 errors of 2e-6
    assert (fourier_backward(got, weights, frequencies) - gradient).norm() < 5e-6 * gradient.norm()


@pytest.mark.parametrize("instructions", library.INSTRUCTION_SETS)
def test_every_instruction_set(instructions):
    """In a process of its own: a set is chosen when the kernels are loaded."""
    best = library.library().instructions
    if library.INSTRUCTION_SETS.index(instructions) > library.INSTRUCTION_SETS.index(best):
        pytest.skip(f"this processor has {best} at most")
    code = (
        "from tests.ops.test_native import *\n"
        f"assert library.library().instructions == {instructions!r}\n"
        "for kind in SCALAR.values():\n"
        "    check(make_case(100, groups=2, key_width=40, value_width=24, **kind).to(torch.float32))\n"
        "    check(make_case(100, groups=2, key_width=40, value_width=24, **kind).to(torch.bfloat16), 1e-2, 2e-2)\n"
        "check(make_case(100, groups=2, key_width=1024, value_width=24).to(torch.float32))\n"
        "check(make_case(100, groups=2, key_width=1024, value_width=24).to(torch.bfloat16), 1e-2, 2e-2)\n"
        "test_many_steps_equal_one_call('gated product')\n"
        "for rows, height, count in FEATURES:\n"
        "    test_fourier_features(rows, height, count)\n"
    )
    environment = os.environ | {library.SET_VARIABLE: instructions}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_it_does_not_serve():
    with pytest.raises(ValueError, match="must all be float32 or all bfloat16, got torch.float64"):
        make_case(4).run("native")
    with pytest.raises(ValueError, match="it has no decay per channel"):
        make_case(4, channels=True).to(torch.float32).run("native")
    case = make_case(4).to(torch.float32)
    with pytest.raises(ValueError, match="got several dtypes"):
        delta_rule(case.q, case.k.bfloat16(), case.v, case.beta, backend="native")
