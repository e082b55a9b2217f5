"""Reading in pieces, generating, forking, going back: always what reading everything at once gives."""

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.tiny import tiny_model
from tests.families.models import assert_near, build, randomize, tokens
from tptt import MemoryConfig, MemorySnapshot, Session, attach_memory, stream
from tptt.assets import BASE
from tptt.evaluation import cache_bytes

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
    "form", [lambda x: x, lambda x: x[0], lambda x: x[0].tolist(), lambda x: iter(x[0].split(4)), lambda x: [x[0, :9].tolist(), x[0, 9:]]],
    ids=["row", "flat", "list", "tensors", "mixed"],
)  # fmt: skip
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
    sizes = {cache_bytes(stream(model, tokens(1, n), chunk_size=16).cache) for n in (32, 64, 1024, 3000)}
    assert len(sizes) == 1


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
    for source, message in ((3, "text, token ids or an iterable"), ("text", "needs a tokenizer"), (["text"], "needs a tokenizer"),
                            (torch.ones(2, 3, dtype=torch.long), "integers"), (torch.ones(3), "integers")):  # fmt: skip
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
    assert seen == [(8, True), (16, True), (19, True)]
    stream(attach_memory(build("llama")), tokens(1, 20), progress=True)
