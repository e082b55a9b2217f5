"""In whatever mode the model is, a session gives the same, and leaves each part of the model in its own mode."""

import contextlib

import pytest
import torch

from tests.families.models import build, randomize, tokens
from tptt import MemoryConfig, Session, attach_memory, stream

NEW = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
IDS, QUESTION = tokens(1, 24), tokens(1, 4, seed=5)


def make(dropout=0.0):
    base = build("llama")
    for layer in base.model.layers:
        layer.self_attn.attention_dropout = dropout
    memory = MemoryConfig(max_self_attn_length=6, sink_tokens=2)
    return randomize(attach_memory(base, memory))


def said(model, session=None):
    """An answer, and what is generated, after reading."""
    session = (session or Session(model, chunk_size=9)).read(IDS)
    return torch.cat([session.ask(QUESTION, **NEW), session.generate(QUESTION, **NEW)])


@pytest.fixture(scope="module")
def want():
    return said(make())


def modes(model):
    return [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()]


def test_a_session_leaves_frozen_parts_in_eval_mode(tiny):
    model = tiny(max_self_attn_length=8).train()
    model.inner.model.layers[0].mlp.eval()
    before = [m.training for m in model.modules()]
    session = Session(model).read(torch.arange(3, 20))
    session.ask([3], max_new_tokens=2), session.generate([3], max_new_tokens=2)
    session.restore(session.snapshot())
    assert [m.training for m in model.modules()] == before and len(set(before)) == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training(want, checkpointing):
    model = make(dropout=0.9).train()
    model.model.layers[1].mlp.eval()
    if checkpointing:
        model.gradient_checkpointing_enable()
    before = modes(model)
    assert torch.equal(said(model), want)
    assert modes(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_a_source_that_uses_the_model_finds_its_mode():
    model = make().train()
    seen = []

    def source():
        for part in IDS.split(9, dim=1):
            seen.append((model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            yield part

    Session(model, chunk_size=9).read(source())
    assert set(seen) == {(True, True, False)}


@pytest.mark.parametrize("inside", ["begin", "read", "fork", "restore", "snapshot"])
def test_what_is_made_in_inference_mode_goes_on_outside(want, inside):
    model = make()

    def within(step):
        return torch.inference_mode() if step == inside else contextlib.nullcontext()

    with within("begin"):
        session = Session(model, chunk_size=9)
    with within("read"):
        session.read(IDS[:, :13])
    with within("fork"):
        session = session.fork()
    with within("snapshot"):
        snapshot = session.snapshot()
    with within("restore"):
        session.restore(snapshot)
    session.read(IDS[:, 13:])
    assert torch.equal(torch.cat([session.ask(QUESTION, **NEW), session.generate(QUESTION, **NEW)]), want)


def test_a_model_made_in_inference_mode(want):
    with torch.inference_mode():
        model = make()
    assert torch.equal(said(model), want)
    stream(make(), IDS).snapshot().check(model)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_under_every_context(want, context):
    with context():
        assert torch.equal(said(make()), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions(dtype):
    model = make().to(dtype)
    both = torch.cat([IDS, QUESTION], 1)
    want = model.generate(both, attention_mask=torch.ones_like(both), **NEW)[0, both.shape[1] :]
    assert torch.equal(stream(model, IDS, chunk_size=24).ask(QUESTION, **NEW), want)


def test_reading_in_and_out_of_autocast():
    session = Session(make(), chunk_size=9)
    for part in IDS.split(6, dim=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            session.read(part)
        session.read(part)
    assert session.tokens == 48 and len(session.generate(QUESTION, **NEW)) == 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(session.ask(QUESTION, **NEW)) == 6


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled(want, in_place):
    model = make()
    snapshot = stream(model, IDS, chunk_size=9).snapshot()
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    session = Session(model).restore(snapshot)
    assert torch.equal(session.ask(QUESTION, **NEW), want[:6])
    assert session.read(QUESTION).tokens == 28
