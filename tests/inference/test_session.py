"""Reading in pieces, generating, forking, going back: always what reading everything at once gives."""

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.pytorch_utils import Conv1D

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, build, randomize, tokens
from tptt import MemoryConfig, MemorySnapshot, Session, attach_memory, stream
from tptt.assets import BASE
from tptt.evaluation import measured_size
from tptt.inference.rollback import RollbackPoint

WINDOW = {"max_self_attn_length": 6, "sink_tokens": 2}
SETTINGS = [{}, WINDOW, {"memory_only_layers": "all"}, WINDOW | {"layers": [1], "operator": "gated_delta_product"}]
NEW = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=SETTINGS, ids=str)
def model(request):
    return randomize(attach_memory(build("llama"), MemoryConfig(**request.param)))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


def after(model, session, seed=3):
    """Logits of a few more tokens, read on a fork; what waits comes first."""
    waits = session.tokens - session.cache.get_seq_length()
    ids = torch.cat([torch.tensor([session.snapshot().pending], dtype=torch.long), tokens(1, 5, seed=seed)], 1)
    assert ids.shape[1] == waits + 5
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=session.fork().cache, use_cache=True).logits[:, -5:]


def from_scratch(model, ids, seed=3):
    with torch.no_grad():
        return model(input_ids=torch.cat([ids, tokens(1, 5, seed=seed)], 1), use_cache=False).logits[:, -5:]


def generated(model, ids, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **NEW | options)[0, ids.shape[1] :]


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x[0],
        lambda x: x[0].tolist(),
        lambda x: iter(x[0].split(4)),
        lambda x: [x[0, :9].tolist(), x[0, 9:]],
    ],
    ids=["row", "flat", "list", "tensors", "mixed"],
)
def test_reading_in_chunks(model, chunk, form):
    ids = tokens(1, 40)
    session = stream(model, form(ids), chunk_size=chunk)
    assert session.tokens == 40
    assert_near(after(model, session), from_scratch(model, ids))


def test_generating_and_going_on(model):
    ids, question = tokens(1, 20), tokens(1, 4, seed=5)
    session = stream(model, ids)
    first = session.generate(question, **NEW)
    so_far = torch.cat([ids, question], 1)
    assert torch.equal(first, generated(model, so_far))
    so_far = torch.cat([so_far, first[None]], 1)
    assert session.tokens == so_far.shape[1]
    second = session.generate(**NEW)  # goes on by itself
    assert torch.equal(second, generated(model, so_far))
    so_far = torch.cat([so_far, second[None]], 1)
    session.read(tokens(1, 6, seed=6))
    so_far = torch.cat([so_far, tokens(1, 6, seed=6)], 1)
    assert session.tokens == so_far.shape[1]
    assert_near(after(model, session), from_scratch(model, so_far))


def test_generating_right_after_reading(model):
    ids = tokens(1, 20)
    assert torch.equal(stream(model, ids, chunk_size=7).generate(**NEW), generated(model, ids))


def test_asking_leaves_the_session_as_it_is(model):
    ids, question = tokens(1, 20), tokens(1, 4, seed=5)
    session = stream(model, ids)
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        got = session.ask(question, **NEW, **options)
        both = torch.cat([ids, question], 1)
        want = model.generate(both, attention_mask=torch.ones_like(both), use_cache=False, **NEW, **options)
        assert torch.equal(got.reshape(-1, 8), want[:, both.shape[1] :])
    assert session.tokens == 20
    assert_near(after(model, session), from_scratch(model, ids))


@pytest.mark.parametrize("where", ["generation_config", "the model's"])
def test_beams_asked_for_elsewhere(where):
    model = randomize(attach_memory(build("llama"), MemoryConfig(**WINDOW)))
    ids, question = tokens(1, 20), tokens(1, 4, seed=5)
    both = torch.cat([ids, question], 1)
    session = stream(model, ids)
    for beams in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        want = generated(model, both, **beams) if len(beams) == 1 else None
        if where == "generation_config":
            options = {"generation_config": GenerationConfig(**NEW, **beams)}
        else:
            model.generation_config.update(**beams)
            options = dict(NEW)
        got = session.ask(question, **options)
        assert got.shape == (8,) if len(beams) == 1 else got.shape == (2, 8)
        assert want is None or torch.equal(got, want)
        with pytest.raises(ValueError, match=r"[23] beams or sequences .* use ask\(\).* or set num_beams=1"):
            session.generate(question, **options)
    assert session.tokens == 20
    assert torch.equal(
        session.generate(question, **NEW, num_beams=1, num_return_sequences=1),
        generated(model, both, num_beams=1, num_return_sequences=1),
    )


@pytest.mark.parametrize("option", [{"use_cache": False}, {"return_dict_in_generate": True}], ids=str)
@pytest.mark.parametrize("method", ["ask", "generate"])
def test_what_does_not_go_with_a_session_is_refused_first(method, option):
    model = randomize(attach_memory(build("llama"), MemoryConfig(**WINDOW)))
    session = stream(model, tokens(1, 20))
    before, (name, value) = after(model, session), *option.items()
    for options in (NEW | option, {"generation_config": GenerationConfig(**NEW, **option)}):
        with pytest.raises(ValueError, match=f"{name}={value} .* leave it out, or set"):
            getattr(session, method)(iter([tokens(1, 4)]), **options)
    assert session.tokens == 20 and torch.equal(after(model, session), before)
    model.generation_config.update(**option)
    with pytest.raises(ValueError, match=f"{name}={value} .* or the model's"):
        getattr(session, method)(tokens(1, 4), **NEW)
    getattr(session, method)(tokens(1, 4), **NEW, **{name: not value})


class Interrupted(BaseException):
    """As KeyboardInterrupt is, which would stop pytest where it got through."""


class Streamer:
    """Interrupts once ``shown`` new tokens have been shown; the prompt comes first."""

    def __init__(self, shown):
        self.left = shown + 1

    def put(self, ids):
        self.left -= 1
        if not self.left:
            raise Interrupted

    def end(self):
        pass


def interrupted_within(model, calls, act):
    """``act``, stopped between the attention and the rest of the last layer, in the ``calls``-th call of the model."""
    left = calls

    def stop(*args):
        nonlocal left
        left -= 1
        if not left:
            raise Interrupted

    layer = [m for name, m in model.named_modules() if name.endswith("layers.1") or name.endswith("h.1")][0]
    last = [m for name, m in layer.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)][-1]
    handle = last.register_forward_hook(stop)
    try:
        with pytest.raises(Interrupted):
            act()
    finally:
        handle.remove()


def assert_interruptions_leave_no_trace(model):
    session = stream(model, tokens(1, 20), chunk_size=20)
    for past in ("read", "generated"):  # one by one into the ring, where there is a window
        if past == "generated":
            session.generate(**NEW)
        count, before = session.tokens, after(model, session)
        for shown in (0, 1, 3):
            with pytest.raises(Interrupted):
                session.generate(tokens(1, 4, seed=9), streamer=Streamer(shown), **NEW)
            assert session.tokens == count and torch.equal(after(model, session), before)
        for calls in (1, 3):
            interrupted_within(model, calls, lambda: session.generate(**NEW))
            assert session.tokens == count and torch.equal(after(model, session), before)
        interrupted_within(model, 1, lambda: session.read(tokens(1, 9, seed=9)))
        assert session.tokens == count and torch.equal(after(model, session), before)
    want = session.fork().generate(**NEW)
    assert torch.equal(session.generate(**NEW), want)


def test_interruptions_leave_no_trace(model):
    assert_interruptions_leave_no_trace(model)


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma2", "falcon_h1", "gpt2"])
def test_interruptions_leave_no_trace_in_other_caches(family):
    assert_interruptions_leave_no_trace(randomize(attach_memory(tiny_model(family), MemoryConfig())))


def test_interrupted_reading_keeps_whole_chunks(model):
    ids = tokens(1, 40)
    session = stream(model, ids[:, :5])
    session.chunk_size = 8
    interrupted_within(model, 3, lambda: session.read(ids[:, 5:]))
    assert session.tokens == 5 + 16
    assert_near(after(model, session), from_scratch(model, ids[:, :21]))
    assert torch.equal(session.fork().generate(**NEW), generated(model, ids[:, :21]))
    session.read(ids[:, session.tokens :])
    assert_near(after(model, session), from_scratch(model, ids))


def test_a_source_that_fails_in_the_middle():
    def source():
        yield tokens(1, 20)
        raise OSError("the disk is gone")

    model = randomize(attach_memory(build("llama"), MemoryConfig(**WINDOW)))
    session = Session(model, chunk_size=8)
    with pytest.raises(OSError, match="the disk is gone"):
        session.read(source())
    assert session.tokens == 16
    assert_near(after(model, session), from_scratch(model, tokens(1, 20)[:, :16]))


def test_a_mark_does_not_grow_with_the_conversation():
    model = attach_memory(build("llama"))
    sizes = set()
    for n in (32, 1024):
        kept = [rest for _, rest in RollbackPoint(stream(model, tokens(1, n)).cache)._layers]
        sizes.add(sum(x.nbytes for rest in kept for x in rest.values() if isinstance(x, torch.Tensor)))
    assert len(sizes) == 1


def test_sampling_with_a_seed(model):
    session, options = stream(model, tokens(1, 20)), NEW | {"do_sample": True}
    both = torch.cat([tokens(1, 20), tokens(1, 4, seed=5)], 1)
    torch.manual_seed(7)
    want = model.generate(both, attention_mask=torch.ones_like(both), use_cache=False, **options)
    torch.manual_seed(7)
    assert torch.equal(session.ask(tokens(1, 4, seed=5), **options), want[0, 24:])


def test_snapshot_fork_and_roll_back(model, tmp_path):
    ids = tokens(1, 30)
    session = stream(model, ids[:, :20])
    snapshot, fork = session.snapshot(), session.fork()
    session.read(ids[:, 20:])
    assert_near(after(model, session), from_scratch(model, ids))
    assert_near(after(model, fork), from_scratch(model, ids[:, :20]))
    fork.read(tokens(1, 9, seed=8))
    assert_near(after(model, session.restore(snapshot)), from_scratch(model, ids[:, :20]))
    session.read(ids[:, 20:])
    assert_near(after(model, session), from_scratch(model, ids))
    file = session.save(tmp_path / "deep" / "memory.safetensors")
    again = Session.load(file, model)
    assert torch.equal(after(model, again), after(model, session)) and again.tokens == 30
    assert MemorySnapshot.load(file).bytes == session.snapshot().bytes <= file.stat().st_size


def test_what_waits_is_kept_in_a_snapshot(model, tmp_path):
    session = stream(model, tokens(1, 10))
    new = session.generate(tokens(1, 2, seed=1), **NEW)
    again = Session.load(session.save(tmp_path / "s.safetensors"), model)
    assert again.tokens == session.tokens == 20
    everything = torch.cat([tokens(1, 10), tokens(1, 2, seed=1), new[None]], 1)
    for each in (session, again):
        assert_near(after(model, each.read([5])), from_scratch(model, torch.cat([everything, torch.tensor([[5]])], 1)))


@pytest.mark.parametrize("family", ["jamba", "deepseek_v3", "gemma2", "falcon_h1", "gpt2"])
def test_other_caches(family, tmp_path):
    """Recurrent states of the base itself, latents, sliding layers."""
    model = randomize(attach_memory(tiny_model(family), MemoryConfig(operator="gated_delta_rule")))
    ids = tokens(1, 26)
    session = Session.load(stream(model, ids[:, :18], chunk_size=18).save(tmp_path / "s.safetensors"), model)
    assert_near(
        after(model, session.read(ids[:, 18:])),
        after(model, stream(model, ids[:, :18], chunk_size=18).read(ids[:, 18:])),
    )


def test_memory_does_not_grow():
    model = randomize(attach_memory(build("llama"), MemoryConfig(**WINDOW)))
    sizes = {measured_size(stream(model, tokens(1, n), chunk_size=16).cache).bytes for n in (32, 64, 1024, 3000)}
    assert len(sizes) == 1


def test_assisted_decoding_leaves_no_recording(model):
    ids = tokens(1, 8).repeat(1, 3)
    session, plain = stream(model, ids), stream(model, ids)
    new = session.generate(**NEW, prompt_lookup_num_tokens=3)
    assert torch.equal(new, plain.generate(**NEW))
    more = tokens(1, 40, seed=6)
    for each in (session, plain):
        each.read(more)
    assert session.tokens == plain.tokens and session.snapshot().bytes == plain.snapshot().bytes
    assert measured_size(session.cache).bytes == measured_size(plain.cache).bytes
    assert_near(after(model, session), from_scratch(model, torch.cat([ids, new[None], more], 1)))


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma2"])
def test_assisted_decoding_leaves_no_recording_in_other_caches(family):
    test_assisted_decoding_leaves_no_recording(randomize(attach_memory(tiny_model(family), MemoryConfig())))


def test_another_model_is_refused(tmp_path):
    def make(seed=0, **settings):
        return randomize(attach_memory(build("llama"), MemoryConfig(**settings)), seed)

    file = stream(make(), tokens(1, 10)).save(tmp_path / "s.safetensors")
    Session.load(file, make())
    for other in (make(seed=1), make(**WINDOW), make(operator="gated_delta_rule"), make().to(torch.bfloat16)):
        with pytest.raises(ValueError, match="was taken from another model"):
            Session.load(file, other)


def test_what_is_no_snapshot_is_refused(tmp_path):
    from safetensors.torch import save_file

    model = attach_memory(build("llama"))
    with pytest.raises(OSError, match="no snapshot at"):
        Session.load(tmp_path / "nowhere", model)
    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="but no snapshot of a memory"):
        Session.load(tmp_path / "weights.safetensors", model)
    (tmp_path / "text").write_text("something else")
    with pytest.raises(ValueError, match="is no safetensors file"):
        Session.load(tmp_path / "text", model)
    recording = stream(model, tokens(1, 5))
    recording.cache.activate_past_recording()
    with pytest.raises(ValueError, match="records its past"):
        recording.snapshot()


def test_bad_input(tokenizer):
    model = attach_memory(build("llama"))
    for source, message in (
        (3, "text, token ids or an iterable"),
        ("text", "needs a tokenizer"),
        (["text"], "needs a tokenizer"),
        (torch.ones(2, 3, dtype=torch.long), "integers"),
        (torch.ones(3), "integers"),
    ):
        with pytest.raises(TypeError, match=message):
            stream(model, source)
    with pytest.raises(ValueError, match="chunk_size must be an integer of 1 or more, got 0"):
        Session(model, chunk_size=0)
    with pytest.raises(ValueError, match="nothing to go on from"):
        Session(model).generate()
    with pytest.raises(ValueError, match="use ask"):
        stream(model, tokens(1, 5)).generate(tokens(1, 2), num_beams=2)
    with pytest.raises(ValueError, match="carries no memory"):
        Session(build("llama"))


def test_a_table_of_positions_has_an_end():
    model = attach_memory(build("gpt2"), MemoryConfig(**WINDOW))
    session = stream(model, tokens(1, 250), chunk_size=50)
    for more in (lambda: session.read(tokens(1, 10)), lambda: session.ask(tokens(1, 10), max_new_tokens=1)):
        with pytest.raises(ValueError, match="a table of 256 positions: after 249 tokens it cannot read 1[01] more"):
            more()
    assert session.tokens == 250
    assert session.read(tokens(1, 6)).tokens == 256


# ---- text ----------------------------------------------------------------------------------------------------------


def converted(tokenizer):
    base = tiny_model("llama", vocab_size=len(tokenizer))
    return randomize(attach_memory(base, MemoryConfig(**WINDOW)))


def test_text_in_text_out(tokenizer, tmp_path):
    model = converted(tokenizer)
    text = "The moon rose over the hill. Anna saw it, and said nothing.\n" * 40
    file = tmp_path / "book.txt"
    file.write_text(text)
    whole = stream(model, text, tokenizer)
    with file.open() as lines:
        by_line = stream(model, lines, tokenizer)
    assert whole.tokens == by_line.tokens == len(tokenizer(text)["input_ids"])
    answer = whole.ask("Who saw it?", max_new_tokens=5)
    assert isinstance(answer, str) and by_line.ask("Who saw it?", max_new_tokens=5) == answer


def test_long_text_is_cut_where_the_tokenizer_cuts(tokenizer, monkeypatch):
    from tptt.inference import source

    text = "Numbers like 12345, names like Zanzibar; and\n\n  spaces of   any kind. " * 9
    want = torch.tensor(tokenizer(text)["input_ids"])
    monkeypatch.setattr(source, "_CHARACTERS", 50)
    for form in (text, iter(text), [text[:100], text[100:]]):
        pieces = list(source.token_pieces(form, tokenizer))
        assert len(pieces) > 1 and torch.equal(torch.cat(pieces), want)


def test_progress():
    seen = []
    stream(
        attach_memory(build("llama")),
        tokens(1, 20),
        chunk_size=8,
        progress=lambda n, seconds: seen.append((n, seconds > 0)),
    )
    assert seen == [(8, True), (16, True), (20, True)]
    stream(attach_memory(build("llama")), tokens(1, 20), progress=True)
