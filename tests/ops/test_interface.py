"""The public functions: errors, selection of the backend, and life inside autograd, autocast and torch.compile."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tptt import LinearAttention, MemoryConfig
from tptt.ops import available_backends, backend_for, backends, chunk, delta_rule, delta_rule_step, fla, recurrences

from .cases import BACKENDS, KINDS, assert_close, make_case, results, serve

WRONG = {
    "q must have shape": lambda c: replace(c, q=c.q[:, :, :3]),
    "k must have 4 dimensions": lambda c: replace(c, k=c.k[0]),
    "v must have shape": lambda c: replace(c, v=c.v[:, :2]),
    "beta must have shape": lambda c: replace(c, beta=c.beta[..., None]),
    "g must have shape": lambda c: replace(c, g=c.g[:, :, :1]),
    "initial_state must have shape": lambda c: replace(c, initial_state=c.initial_state.mT),
    "widths must be at least 1": lambda c: replace(c, v=c.v[..., :0]),
    "beta is on meta, but k is on cpu": lambda c: replace(c, beta=c.beta.to("meta")),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_shapes_and_devices(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message](make_case(5, groups=2)).run("auto")


def test_wrong_types():
    case = make_case(5)
    with pytest.raises(TypeError, match="k must be floating point, got torch.int64"):
        replace(case, k=case.k.long()).run("auto")
    with pytest.raises(TypeError, match="v must be a tensor, got list"):
        delta_rule(case.q, case.k, case.v.tolist(), case.beta)


def test_wrong_backend():
    case = make_case(5)
    with pytest.raises(
        ValueError, match="unknown backend 'fast'; expected one of auto, naive, chunk, step, native, fla"
    ):
        case.run("fast")
    with pytest.raises(ValueError, match="'step' cannot serve this call: it computes exactly one token, got T = 5"):
        case.run("step")


@pytest.mark.parametrize("size", (0, -8, 24, 32.0))
def test_wrong_chunk_size(size):
    with pytest.raises(ValueError, match="chunk_size must be None or a power of two"):
        make_case(5).run("chunk", chunk_size=size)


def test_available_backends():
    available = available_backends()
    assert list(available) == ["naive", "chunk", "step", "native", "fla"]
    assert [available[name] for name in ("naive", "chunk", "step")] == [None] * 3
    assert torch.cuda.is_available() or "CUDA" in available["fla"] or "fla-core" in available["fla"]


@pytest.fixture
def served(monkeypatch):
    """The names of the backends that have run."""
    names = []
    for name, backend in backends.BACKENDS.items():

        def function(*args, name=name, function=backend.function, **options):
            names.append(name)
            return function(*args, **options)

        monkeypatch.setitem(backends.BACKENDS, name, replace(backend, function=function))

    def step_as_given(*args):
        names.append("native")
        return native_step(*args)

    native_step = recurrences.step_as_given
    monkeypatch.setattr(recurrences, "step_as_given", step_as_given)
    return names


@pytest.mark.parametrize(
    ("tokens", "grad", "expected"), ((1, False, "step"), (1, True, "naive"), (2, True, "naive"), (9, False, "chunk"))
)
def test_auto(served, tokens, grad, expected):
    case = make_case(tokens)
    case.q.requires_grad_(grad)
    case.run("auto")
    with torch.no_grad():
        case.run("auto")
    assert served == [expected, "step" if tokens == 1 else expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64))
@pytest.mark.parametrize("tokens", (1, 3, 9))
@pytest.mark.parametrize("grad", (False, True))
def test_backend_for_is_what_runs(served, kind, dtype, tokens, grad):
    case = make_case(tokens, **KINDS[kind]).to(dtype).map(lambda x: x.requires_grad_(grad))
    case.run("auto")
    given = KINDS[kind]
    choice = backend_for(
        tokens=tokens,
        key_width=16,
        dtype=dtype,
        device="cpu",
        writes=given.get("steps", 1),
        decay=None if case.g is None else "channel" if given.get("channels") else "head",
        delta=given.get("delta", True),
        needs_grad=grad,
    )
    assert served == [choice.name]
    for name, reason in choice.refusals.items():
        if reason is None:
            case.run(name)
        else:
            with pytest.raises(ValueError, match=re.escape(f"{name!r} cannot serve this call: {reason}")):
                case.run(name)


def test_backend_for_wrong_calls():
    call = {"tokens": 4, "key_width": 16, "dtype": torch.float32, "device": "cpu"}
    for name in ("tokens", "key_width", "writes"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            backend_for(**call | {name: 0})
    with pytest.raises(ValueError, match="decay must be None, 'head' or 'channel', got 'token'"):
        backend_for(**call, decay="token")


@pytest.fixture
def with_fla(monkeypatch):
    """As on a machine with fla-core and a GPU."""
    monkeypatch.setattr(fla, "unavailable", lambda: None)
    monkeypatch.setattr(fla, "no_gated_gradient", lambda: None)


def test_what_fla_serves(with_fla):
    call = {"tokens": 4096, "device": "cuda", "decay": "head", "needs_grad": True}
    for dtype in (torch.bfloat16, torch.float16):
        assert backend_for(**call, key_width=256, dtype=dtype).name == "fla"
        name, refusals = backend_for(**call, key_width=2048, dtype=dtype)
        assert name == "chunk" and refusals["fla"] == "its keys have 256 channels at most, got 2048"
    name, refusals = backend_for(**call, key_width=64, dtype=torch.float32)
    assert name == "chunk" and "must all be bfloat16 or all float16, got torch.float32" in refusals["fla"]
    assert "it runs on the CPU" in refusals["native"]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("feature_map", ("fourier", "sign_split", "silu"))
def test_fla_never_serves_a_memory(with_fla, monkeypatch, feature_map, dtype):
    """Its features are float32 in a model of any dtype; what a GPU runs instead."""
    specs = []

    def select(name, spec):
        specs.append(spec._replace(device="cuda"))
        return backends.select(name, spec)

    monkeypatch.setattr(recurrences, "select", select)
    layer = LinearAttention(64, 2, config=MemoryConfig(feature_map=feature_map)).to(dtype)
    layer(torch.randn(1, 20, 64, dtype=dtype))
    assert len(specs) == 1 and "float32" in fla.refusal(specs[0]._replace(key_width=64))
    assert backends.fastest(specs[0]) == "chunk"
    assert backends.fastest(specs[0]._replace(tokens=1, needs_grad=False)) == "step"


def test_final_state_on_request_only():
    case = make_case(5)
    assert delta_rule(case.q, case.k, case.v, case.beta)[1] is None


@pytest.mark.parametrize(("backend", "tokens"), (("naive", 40), ("chunk", 40), ("step", 1), ("auto", 1), ("auto", 40)))
def test_inputs_are_not_modified(backend, tokens):
    case = make_case(tokens).to(torch.float32)
    before = case.map(torch.clone)
    case.run(backend)
    assert all(torch.equal(x, before.tensors()[name]) for name, x in case.tensors().items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend):
    case, error = serve(backend, make_case(40, groups=2))
    strided = case.map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    expand = {"beta": case.beta[:, :1].expand_as(case.beta)}
    for got, want in zip(strided.run(backend), case.run(backend), strict=True):
        torch.testing.assert_close(got, want)
    run = lambda c: c.run(backend)  # noqa: E731
    assert_close(results(replace(case, **expand), run), results(replace(case, beta=expand["beta"].clone()), run), error)


@pytest.mark.parametrize("decay", (0, 0.1))
@pytest.mark.parametrize("backend", ("auto", "native", "step"))
def test_step_in_place(backend, decay):
    case, _ = serve(backend, make_case(1, groups=2, decay=decay).to(torch.float32))
    state = case.initial_state.clone()
    arguments = (case.q, case.k, case.v, case.beta, case.g)
    o, returned = delta_rule_step(*arguments, state=state, scale=0.7, inplace=True, backend=backend)
    assert returned is state
    for got, want, naive in zip((o, state), case.run(backend), case.run("naive"), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got, naive, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strided", (False, True))
@pytest.mark.parametrize("decay", (0, 0.1))
@pytest.mark.parametrize("backend", ("auto", "native", "step", "naive"))
def test_step_with_a_new_state(backend, decay, strided):
    case, _ = serve(backend, make_case(1, groups=2, decay=decay).to(torch.float32))
    arguments, state = (case.q, case.k, case.v, case.beta, case.g), case.initial_state
    if strided:
        state = state.mT.contiguous().mT
    o, returned = delta_rule_step(*arguments, state=state, scale=0.7, backend=backend)
    assert returned is not state and torch.equal(state, case.initial_state)
    for got, naive in zip((o, returned), case.run("naive"), strict=True):
        torch.testing.assert_close(got, naive, atol=1e-5, rtol=1e-4)
    case.q.requires_grad_()
    o, returned = delta_rule_step(*arguments, state=state, scale=0.7)
    torch.testing.assert_close(
        torch.autograd.grad(o.sum(), case.q)[0], 0.7 * returned.sum(-1).repeat_interleave(2, 1)[:, None]
    )


def test_step_errors():
    case = make_case(1)
    one = (case.q, case.k, case.v, case.beta)
    with pytest.raises(ValueError, match="exactly one token, got T = 2"):
        two = make_case(2)
        delta_rule_step(two.q, two.k, two.v, two.beta, state=two.initial_state)
    with pytest.raises(ValueError, match="inplace needs a state of torch.float64, got torch.float32"):
        delta_rule_step(*one, state=case.initial_state.float(), inplace=True)
    with pytest.raises(ValueError, match="backend 'naive' makes a new state: inplace is for auto, step, native"):
        delta_rule_step(*one, state=case.initial_state, inplace=True, backend="naive")
    with pytest.raises(ValueError, match="unknown backend 'quick'"):
        delta_rule_step(*one, state=case.initial_state, backend="quick")
    case.q.requires_grad_()
    with pytest.raises(ValueError, match="inplace overwrites what a gradient needs"):
        delta_rule_step(*one, state=case.initial_state, inplace=True)


def test_no_second_derivative_of_chunk():
    case = make_case(10)
    case.v.requires_grad_()
    (grad,) = torch.autograd.grad(case.run("chunk")[0].square().sum(), case.v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("reentrant", (False, True))
def test_gradient_checkpointing(reentrant):
    def run(case):
        def run_again(*tensors):
            return replace(case, **dict(zip(case.tensors(), tensors, strict=True))).run("chunk")

        return checkpoint(run_again, *case.tensors().values(), use_reentrant=reentrant)

    case = make_case(70)
    assert_close(results(case, run), results(case, lambda c: c.run("chunk")), 0, 0)


def test_gradient_through_one_result_only():
    """Output or final state alone, and inputs that need no gradient."""
    case = make_case(70).to(torch.float32)
    case.v.requires_grad_()
    want = {}
    for backend in ("naive", "chunk", "auto"):
        got = [torch.autograd.grad(x.sum(), case.v, retain_graph=True)[0] for x in case.run(backend)]
        want.setdefault("naive", got)
        torch.testing.assert_close(got, want["naive"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_reach_the_arithmetic(backend):
    case = make_case(70).to(torch.float32)

    def under_autocast(c):
        with torch.autocast("cpu", torch.bfloat16):
            return c.run(backend)

    assert_close(results(case, under_autocast), results(case, lambda c: c.run(backend)), 0, 0)


@pytest.mark.parametrize("key_width, value_width", ((128, 16), (32, 64)))
def test_memory_grows_by_chunk_groups_not_tokens(monkeypatch, key_width, value_width):
    """The backward of a long call keeps the inputs and a state per chunk group of at least K tokens, nothing per
    chunk."""
    monkeypatch.setattr(chunk, "KEPT_BYTES", 1 << 20)
    monkeypatch.setattr(chunk, "GROUP_NUMBERS", 1)  # the smallest groups
    case = make_case(2048, heads=1, key_width=key_width, value_width=value_width, state=False).to(torch.float32)
    saved = []

    def pack(x):
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        case.q.requires_grad_()
        o, _ = case.run("chunk", chunk_size=16)
    inputs = sum(x.numel() for x in case.tensors().values())
    assert inputs < sum(saved) <= inputs + case.v.numel()
    assert not o.grad_fn.kept
    monkeypatch.undo()
    assert case.run("chunk", chunk_size=16)[0].grad_fn.kept  # a short call


@pytest.mark.filterwarnings("ignore")  # the compiler raises warnings that it hides itself, unless they are errors
def test_torch_compile():
    case = make_case(40)
    run = torch.compile(lambda c: tuple(2 * x for x in c.run("chunk")), backend="eager")
    assert_close(results(case, run), results(case, lambda c: tuple(2 * x for x in c.run("chunk"))), 1e-13, 1e-13)


def test_wrong_packing():
    case = make_case(6, state=False)
    for cuts, message in (
        (torch.tensor([0, 3, 3, 6]), "must ascend from 0 to T = 6"),
        (torch.tensor([0, 3, 5]), "must ascend from 0 to T = 6"),
        (torch.tensor([[0, 6]]), r"must have shape \[sequences \+ 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            case.run("auto", cu_seqlens=cuts)
    with pytest.raises(TypeError, match="int32 or int64, got torch.float32"):
        case.run("auto", cu_seqlens=torch.tensor([0.0, 6.0]))
    with pytest.raises(ValueError, match="the batch must be 1, got 2"):
        make_case(6, batch=2, state=False).run("auto", cu_seqlens=torch.tensor([0, 6]))
    two = torch.tensor([0, 2, 6])
    with pytest.raises(ValueError, match="one state per sequence, 2, got 1"):
        make_case(6).run("auto", cu_seqlens=two)
    with pytest.raises(ValueError, match=r"initial_state must have shape \[2, 2, 16, 8\] .* got \[2, 2, 16, 9\]"):
        case.run("auto", cu_seqlens=two, initial_state=torch.zeros(2, 2, 16, 9))
    with pytest.raises(TypeError, match="initial_state must be a tensor, got int"):
        case.run("auto", cu_seqlens=two, initial_state=5)


@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
def test_wrong_scale(backend):
    case = make_case(6).to(torch.float32)
    for scale in (None, "1", torch.ones(3), torch.ones((), requires_grad=True)):
        with pytest.raises(TypeError, match="scale"):
            case.run(backend, scale=scale)
    for scale in (2, torch.tensor(2.0)):
        torch.testing.assert_close(case.run(backend, scale=scale)[0], case.run(backend, scale=2.0)[0])


def test_gradients_on_the_meta_device():
    case = make_case(40).map(lambda x: x.to("meta").requires_grad_())
    case.run("chunk")[0].sum().backward()
    assert all(x.grad.shape == x.shape for x in case.tensors().values())


def test_values_are_checked_under_debug(monkeypatch):
    case = make_case(6)
    strong, growing = replace(case, beta=case.beta + 2.5), replace(case, g=-case.g)
    strong.run("auto")  # not looked at: that would cost a synchronisation
    monkeypatch.setenv("TPTT_DEBUG", "1")
    case.run("auto")
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 2\], got 2\.\d+ to 3\.\d+"):
        strong.run("auto")
    one = strong.tokens(0, 1, strong.initial_state)
    with pytest.raises(ValueError, match="beta must lie in"):
        delta_rule_step(one.q, one.k, one.v, one.beta, one.g, state=one.initial_state)
    with pytest.raises(ValueError, match=r"g must lie in \[-inf, 0\]"):
        growing.run("auto")
    replace(strong, delta=False).run("auto")


def test_the_delta_rule_needs_beta():
    case = make_case(6)
    with pytest.raises(TypeError, match="beta must be a tensor, got NoneType"):
        replace(case, beta=None).run("auto")
