"""What must hold whatever the numbers: chunk sizes, splits, padding, grouped queries, extreme inputs."""

import math
from dataclasses import replace

import pytest
import torch

from tptt.ops import chunk, chunk_group, decays
from tptt.ops.decays import factor

from .cases import BACKENDS, KINDS, assert_close, make_case, reference, results, serve


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", (1, 4, 16, 64, 128))
def test_chunk_size_changes_nothing(chunk_size, kind):
    case = make_case(130, groups=2, **KINDS[kind])
    got = results(case, lambda c: c.run("chunk", chunk_size=chunk_size))
    assert_close(got, results(case, lambda c: c.run("chunk")), 1e-13, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_forward_keeps_changes_nothing(kind, monkeypatch):
    """A long call computes its chunk groups again, a short one keeps them, for one backward."""
    case = make_case(130, groups=2, **KINDS[kind])

    def twice(c):
        o, state = c.run("chunk", chunk_size=16)
        (o.sum() + state.sum()).backward(retain_graph=True)
        for x in c.tensors().values():
            x.grad = None
        return o, state

    kept = results(case, twice)
    monkeypatch.setattr(chunk, "KEPT_BYTES", 0)
    again = results(case, lambda c: c.run("chunk", chunk_size=16))
    assert all(torch.equal(x, again[name]) for name, x in kept.items())
    monkeypatch.undo()
    for name, x in results(case, lambda c: c.run("chunk", chunk_size=16)).items():
        assert torch.equal(x, again[name]), name


@pytest.mark.parametrize("keep", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_states_carried_in_place_equal_a_state_per_chunk(kind, keep, monkeypatch):
    """Large states, forward and backward, in groups of a few chunks each; with and without what the forward keeps."""
    case = make_case(130, groups=2, **KINDS[kind])
    monkeypatch.setattr(chunk, "GROUP_NUMBERS", 1)  # chunk groups of as many positions as keys have channels
    monkeypatch.setattr(chunk, "KEPT_BYTES", keep << 30)
    monkeypatch.setattr(chunk_group, "STATES_BYTES", 1 << 30)
    want = results(case, lambda c: c.run("chunk", chunk_size=4))
    monkeypatch.setattr(chunk_group, "STATES_BYTES", 0)
    assert_close(results(case, lambda c: c.run("chunk", chunk_size=4)), want, 1e-13, 1e-13)
    o, state = case.run("chunk", chunk_size=4)  # without gradients
    assert_close({"o": o, "state": state}, {"o": want["o"], "state": want["state"]}, 1e-13)


@pytest.mark.parametrize("cut", (0, 1, 31, 64, 100))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_calls_equal_one(backend, cut, kind):
    case, error = serve(backend, make_case(100, groups=2, **KINDS[kind]))

    def split(c):
        first, state = c.tokens(0, cut, c.initial_state).run(backend)
        second, state = c.tokens(cut, 100, state).run(backend)
        return torch.cat([first, second], 1), state

    assert_close(results(case, split), results(case, lambda c: c.run(backend)), error, error)


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_equals_one_call(kind):
    case = make_case(40, groups=2, **KINDS[kind]).to(torch.float32)
    outputs, state = [], case.initial_state
    for t in range(40):
        o, state = case.tokens(t, t + 1, state).run("auto")
        outputs.append(o)
    want_o, want_state = case.run("chunk")
    torch.testing.assert_close(torch.cat(outputs, 1), want_o, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, want_state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", (1, 65))
@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
def test_padding_leaves_the_state_untouched(backend, tokens):
    case = make_case(tokens).to(torch.float32)
    case = replace(case, beta=torch.zeros_like(case.beta), g=torch.zeros_like(case.g))
    assert torch.equal(case.run(backend)[1], case.initial_state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_in_between_changes_nothing(backend, kind):
    case, _ = serve(backend, make_case(50, **KINDS[kind]))
    padded = case.map(lambda x: x if x is case.initial_state else torch.cat([x[:, :20], 0 * x[:, :13], x[:, 20:]], 1))
    o, state = case.run(backend)
    padded_o, padded_state = padded.run(backend)
    torch.testing.assert_close(torch.cat([padded_o[:, :20], padded_o[:, 33:]], 1), o)
    torch.testing.assert_close(padded_state, state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_decay_equals_none(backend):
    case, _ = serve(backend, make_case(70))
    without = replace(case, g=None).run(backend)
    for got, want in zip(replace(case, g=torch.zeros_like(case.g)).run(backend), without, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("backend", "tokens"), (("naive", 70), ("chunk", 70), ("step", 1), ("auto", 1), ("auto", 70)))
def test_grouped_queries_equal_expanded_keys(backend, tokens):
    case, error = serve(backend, make_case(tokens, groups=3))

    def expanded(c):
        each = {
            name: x.repeat_interleave(3, 2) for name, x in c.tensors().items() if name not in ("q", "initial_state")
        }
        o, state = replace(c, **each, initial_state=c.initial_state.repeat_interleave(3, 1)).run(backend)
        return o, state[:, ::3]

    assert_close(results(case, lambda c: c.run(backend)), results(case, expanded), error, error)


@pytest.mark.parametrize("name", ("identical keys", "beta = 2", "identical keys, beta -> 2"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_ill_conditioned(backend, name):
    case = make_case(256, key_width=64, value_width=32, decay=0)
    if "keys" in name:
        case = replace(case, k=case.k[:, :1].expand_as(case.k))
    if "beta" in name:
        case = replace(case, beta=torch.full_like(case.beta, 1.99 if "->" in name else 2.0))
    case = case.to(torch.float32)
    got = results(case, lambda c: c.run(backend))
    assert_close(got, results(case.to(torch.float64), reference), 1e-5, 2e-5 if "->" in name else 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", ("everywhere", "half of the tokens", "once"))
@pytest.mark.parametrize("kind", ({}, {"channels": True}, {"channels": True, "delta": False}), ids=str)
def test_strong_decay(backend, pattern, kind):
    """-20 per step: sums of -4000 in a chunk, where float32 differences keep no digit of a decay of 0.01."""
    case, _ = serve(backend, make_case(200, decay=0.01, **kind))
    strong = torch.zeros(200, dtype=torch.bool)
    strong[{"everywhere": slice(None), "half of the tokens": slice(0, 100), "once": slice(90, 91)}[pattern]] = True
    case = replace(case, g=torch.where(strong.view(1, -1, *[1] * (case.g.dim() - 2)), -20.0, case.g)).to(torch.float32)
    got = results(case, lambda c: c.run(backend, chunk_size=128))
    assert_close(got, results(case.to(torch.float64), reference))


@pytest.mark.parametrize(("total", "error"), ((0.0, 0.0), (-1.0, 2e-7), (-39.9, 2e-7), (-41.0, 5e-6)))
def test_light_decays_keep_every_digit(total, error):
    """As products of two exponentials; from a sum of -40 on they are exponentials of float32 differences."""
    logs = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    logs *= total / logs.sum(1, keepdim=True)
    sums = logs.double().cumsum(1)
    between = (sums.unsqueeze(2) - sums.unsqueeze(1)).exp().tril()
    since_start = sums.exp().unsqueeze(2)
    expected = between, since_start, between[:, -1].unsqueeze(2), since_start[:, -1:]
    for got, want in zip(decays.Decays.from_logs(logs), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=error, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].get("decay") != 0])
def test_nothing_survives_a_decay_of_minus_infinity(backend, kind):
    case = serve(backend, make_case(70, **KINDS[kind]))[0].to(torch.float32)
    g = case.g.clone()
    g[:, 17] = -torch.inf
    got = results(case, lambda c: replace(c, g=torch.where(g.isinf(), -torch.inf, c.g)).run(backend))
    want = results(case.to(torch.float64), lambda c: reference(replace(c, g=torch.where(g.isinf(), -1e4, c.g))))
    got["d_g"][:, 17] = 0  # reaches nothing: a factor of zero, or its derivative times zero
    assert_close(got, want)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].get("decay") != 0])
@pytest.mark.parametrize("decay, size", ((-16.0, 32), (-100.0, 32), (-0.6, 1024)))
def test_decays_beyond_the_smallest_factor_in_double(kind, decay, size):
    """The sum over a chunk falls below what `decays.factor` keeps."""
    case = make_case(min(2 * size, 1100), heads=1, key_width=4, value_width=3, **KINDS[kind])
    case = replace(case, g=torch.full_like(case.g, decay))
    assert_close(results(case, lambda c: c.run("chunk", chunk_size=size)), results(case, reference), 1e-12, 1e-10)


@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].get("decay") != 0])
def test_packed_sequences_that_begin_with_a_decay_of_minus_infinity(backend, kind):
    case, _ = serve(backend, make_case(12, state=False, **KINDS[kind]))
    case.g[:, [0, 5]] = -torch.inf
    cuts = torch.tensor([0, 5, 12])
    got = results(case, lambda c: c.run(backend, cu_seqlens=cuts))
    for start, stop in ((0, 5), (5, 12)):
        want, _ = case.tokens(start, stop, None).run("naive")
        torch.testing.assert_close(got["o"][:, start:stop], want, rtol=1e-5, atol=1e-6)
    assert all(x.isfinite().all() for x in got.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_writes_per_token(backend):
    case, error = serve(backend, make_case(7, steps=70, key_width=8))
    torch.testing.assert_close(case.run(backend), case.run("naive"), rtol=1e-4 if error > 1e-9 else 1e-9, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", (1.0, 5.0, 30.0))
def test_strong_decay_of_long_keys(backend, length):
    """Without the decay these would grow by beta |k|^2 at every token."""
    case, _ = serve(backend, make_case(200))
    case = replace(case, g=case.g - 8 - math.log(length), k=case.k * length).to(torch.float32)
    assert_close(results(case, lambda c: c.run(backend)), results(case.to(torch.float64), reference))


@pytest.mark.parametrize("pattern", ("everywhere", "half of the tokens", "once"))
def test_strong_decay_without_double(pattern, monkeypatch):
    """As on a device that has none: there a difference of sums in float32 is off behind half of the tokens."""
    monkeypatch.setattr(decays, "wide_dtype", lambda device: torch.float32)
    test_strong_decay("chunk", pattern, {})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ("gated delta", "kda", "gated product"))
def test_decay_gradient_of_each_token(backend, kind):
    """Relative to itself, not to the largest: behind a decay of -20 the gradient is 1e-9 of its neighbours'."""
    case = serve(backend, make_case(64, **KINDS[kind] | {"decay": 20.0}, heads=1))[0].to(torch.float32)
    got = results(case, lambda c: c.run(backend))["d_g"].double()
    want = results(case.to(torch.float64), reference)["d_g"]
    seen = want.abs() > 1e-25
    assert seen.sum() > 30
    exact = (got - want).abs()[seen] <= 1e-4 * want.abs()[seen]
    assert exact.double().mean() >= 0.97  # a few are themselves what two large terms leave


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_stay_zero(backend, kind):
    case = serve(backend, make_case(70, **KINDS[kind]).map(torch.zeros_like))[0]
    assert all(not x.any() for x in case.run(backend))
    assert all(x.isfinite().all() for x in results(case, lambda c: c.run(backend)).values())


@pytest.mark.parametrize("dtype, least", [(torch.float32, 1e-26), (torch.float64, 1e-215)])
def test_factors_of_decay_are_exact_or_zero(dtype, least):
    logs = -torch.linspace(0, 800, 4001, dtype=dtype)
    got, want = factor(logs.clone()), logs.exp()
    kept = want > least
    assert not got[~kept].any() and (~kept).any()
    torch.testing.assert_close(got[kept], want[kept], rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_values_scale(backend):
    case = make_case(70).to(torch.float32)
    huge = replace(case, v=case.v * 2.0**90, initial_state=case.initial_state * 2.0**90)
    for got, want in zip(huge.run(backend), case.run(backend), strict=True):
        assert torch.equal(got, want * 2.0**90)


@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state, final", ((False, False), (True, False), (False, True)))
def test_states_not_given_or_not_asked_for(backend, kind, state, final):
    def outputs(o, after):
        assert (after is not None) == final
        return o, after if final else o.new_zeros(1)

    for tokens in (1, 40, 130):
        case, bound = serve(backend, make_case(tokens, groups=2, state=state, **KINDS[kind]))
        got = results(case, lambda c: outputs(*c.run(backend, output_final_state=final)))
        want = results(case.to(torch.float64), lambda c: outputs(reference(c)[0], reference(c)[1] if final else None))
        assert_close(got, want, bound, 10 * bound)


@pytest.mark.parametrize("backend", (*BACKENDS, "auto"))
def test_no_tokens(backend):
    case = make_case(1, groups=2).to(torch.float32)
    o, state = case.tokens(0, 0, case.initial_state).run(backend)
    assert o.shape == (1, 0, 4, 8) and torch.equal(state, case.initial_state) and state is not case.initial_state
    o, state = case.tokens(0, 0, None).run(backend)
    assert o.shape == (1, 0, 4, 8) and state.shape == case.initial_state.shape and not state.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS + ("auto",))
def test_packed_equals_separate(backend, kind):
    lengths = (5, 70, 1, 33, 64, 2)
    case, error = serve(backend, make_case(sum(lengths), groups=2, **KINDS[kind]))
    cuts = torch.tensor((0, *lengths)).cumsum(0)
    states = make_case(1, batch=len(lengths), seed=3).initial_state.to(case.q.dtype)
    case = replace(case, initial_state=states)

    def separate(c):
        parts = [
            c.tokens(int(a), int(b), c.initial_state[i : i + 1]).run(backend)
            for i, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True))
        ]
        outputs, finals = zip(*parts, strict=True)
        return torch.cat(outputs, 1), torch.cat(finals)

    got = results(case, lambda c: c.run(backend, cu_seqlens=cuts.int()))
    assert_close(got, results(case, separate), error, error)
    o, state = case.run(backend, cu_seqlens=cuts, output_final_state=False)
    assert state is None and torch.equal(o, case.run(backend, cu_seqlens=cuts)[0])


@pytest.mark.parametrize("backend", ("naive", "chunk"))
def test_one_decay_for_all_channels_equals_a_scalar_one(backend):
    case = make_case(70, groups=2)
    wide = replace(case, g=case.g.unsqueeze(3).expand(-1, -1, -1, 16))
    for got, want in zip(wide.run(backend), case.run(backend), strict=True):
        torch.testing.assert_close(got, want)
