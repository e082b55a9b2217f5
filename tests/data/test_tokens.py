import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
from transformers import AutoTokenizer, ByT5Tokenizer

from tests.data.files import texts, write
from tptt.assets import BASE
from tptt.data import load_text, tokenize, tokenize_once, tokens
from tptt.data.tokens import tokenizer_fingerprint


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder / "tptt-tokens"


@pytest.fixture
def work(monkeypatch):
    """The groups of documents that were tokenized, as they are."""
    done, inner = [], tokens._batches

    def counted(tokenizer, documents, limit):
        for ids in inner(tokenizer, documents, limit):
            done.append(len(ids))
            yield ids

    monkeypatch.setattr(tokens, "_batches", counted)
    return done


def whole(folder):
    """What lies in the cache and is taken for whole."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"] if folder.exists() else []


# ---- in memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [1, 63, 64, 65, 128, 130])
def test_every_document_is_kept_in_order_and_ended(tokenizer, documents):
    found = [f"x = {i}\n" for i in range(documents)]
    expected = [t for text in found for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert tokenize(tokenizer, found).tolist() == expected == tokenize_once(tokenizer, found).ids.tolist()


@pytest.mark.parametrize("limit", [0, 1, 50, 100_000])
def test_limit_is_a_prefix(tokenizer, limit):
    found = [f"x = {i}\n" for i in range(200)]
    all_of_it = tokenize(tokenizer, found)
    assert torch.equal(tokenize(tokenizer, found, limit), all_of_it[:limit])
    assert tokenize_once(tokenizer, found, limit).ids.tolist() == all_of_it[:limit].tolist()


def test_no_document_is_read_beyond_the_limit(tokenizer):
    def endless():
        while True:
            yield "import os\n"

    assert len(tokenize(tokenizer, endless(), limit=50)) == 50


def test_nothing_gives_an_empty_stream(tokenizer):
    stream = tokenize(tokenizer, [])
    assert stream.shape == (0,) and stream.dtype == torch.long
    found = tokenize_once(tokenizer, [])
    assert found.ids.shape == (0,) and found.beginning == ""


def test_long_documents_are_tokenized_few_at_a_time(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "_BATCH", 1000)
    groups = list(tokens._groups(["x" * 400] * 10))
    assert [len(group) for group in groups] == [3, 3, 3, 1]


# ---- once ----------------------------------------------------------------------------------------------------------


def test_a_text_is_tokenized_once(tokenizer, cache, work):
    found = texts(300)
    first = tokenize_once(tokenizer, found, 5000)
    assert sum(work) == 5000 and len(whole(cache)) == 1
    again = tokenize_once(AutoTokenizer.from_pretrained(BASE), list(found), 5000)
    assert sum(work) == 5000, "tokenized again"
    assert torch.equal(first.ids, again.ids) and first.beginning == again.beginning
    assert first.ids.dtype == torch.int32 and first.ids.tolist() == tokenize(tokenizer, found, 5000).tolist()


def test_another_text_tokenizer_or_limit_is_tokenized_anew(tokenizer, cache, work):
    found = texts(30)
    other = AutoTokenizer.from_pretrained(BASE)
    other.add_tokens(["w00001"])
    for number, arguments in enumerate(
        [(tokenizer, found, 500), (tokenizer, found, 501), (tokenizer, found[::-1], 500), (other, found, 500)], 1
    ):
        ids = tokenize_once(*arguments).ids
        assert len(whole(cache)) == number
        assert ids.tolist() == tokenize(*arguments).tolist()


def test_ids_may_be_changed_without_changing_the_cache(tokenizer):
    ids = tokenize_once(tokenizer, texts(3)).ids
    before = ids.clone()
    ids.zero_()
    assert torch.equal(tokenize_once(tokenizer, texts(3)).ids, before)


def test_the_beginning_is_kept_whether_or_not_it_is_tokenized(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "BEGINNING", 3000)
    found = [f"{i}\r\nwörds of a text\n" * 9 for i in range(100)]
    for limit in (0, 10, 10**6):
        assert tokenize_once(tokenizer, found, limit).beginning == "\n".join(found)[:3000]
    assert tokenize_once(tokenizer, found[:2]).beginning == "\n".join(found[:2])


def test_the_documents_of_a_file_are_tokenized_once_too(tokenizer, tmp_path, cache, work):
    path = write(tmp_path / "a.txt", "".join(texts(1500)))
    first, again = (tokenize_once(tokenizer, load_text(str(path)).train.shuffled(1)).ids for _ in range(2))
    assert len(whole(cache)) == 1 and sum(work) == len(first) == len(again)
    assert torch.equal(first, tokenize(tokenizer, load_text(str(path)).train.shuffled(1)).int())
    tokenize_once(tokenizer, load_text(str(path)).train.shuffled(2))
    tokenize_once(tokenizer, load_text(str(path)).held_out)
    assert len(whole(cache)) == 3, "another order or side is another text"


def test_what_is_interrupted_leaves_nothing_behind(tokenizer, cache):
    def interrupted():
        yield from texts(500)
        raise KeyboardInterrupt

    class Interrupted(list):
        def __iter__(self):
            return interrupted()

    found = Interrupted()
    fixed = pytest.MonkeyPatch()
    with fixed.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokens, "fingerprint", lambda documents: "the same")
        tokenize_once(tokenizer, found)
    assert not whole(cache)
    with fixed.context() as patch:
        patch.setattr(tokens, "fingerprint", lambda documents: "the same")
        assert len(tokenize_once(tokenizer, texts(500)).ids) == len(tokenize(tokenizer, texts(500)))


KILLED = """
import os, sys
from transformers import AutoTokenizer
from tptt.assets import BASE
from tptt.data import tokens
def some():
    yield from ["a text of some words"] * 200
    os._exit(3)  # as a process that is killed
tokens.fingerprint = lambda documents: "the same"
tokens.tokenize_once(AutoTokenizer.from_pretrained(BASE), some())
"""


def test_what_a_killed_process_left_is_not_taken_for_whole(tokenizer, cache, monkeypatch):
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache.parent)}
    assert subprocess.run([sys.executable, "-c", KILLED], env=environment).returncode == 3
    assert [path.suffix for path in whole(cache)] == [".part"]
    monkeypatch.setattr(tokens, "fingerprint", lambda documents: "the same")
    found = texts(9)
    assert tokenize_once(tokenizer, found).ids.tolist() == tokenize(tokenizer, found).tolist()
    assert [path.suffix for path in whole(cache)] == [""]


def test_several_at_once_tokenize_once(cache, work):
    """Threads stand for the processes of a run; the lock is one of files."""
    found, results = texts(2000), []

    def run():
        results.append(tokenize_once(AutoTokenizer.from_pretrained(BASE), found).ids)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and sum(work) == len(results[0]) and len(whole(cache)) == 1
    assert all(torch.equal(ids, results[0]) for ids in results)


def test_a_cache_that_cannot_be_written(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", write(tmp_path / "file", "x"))
    with pytest.raises(OSError, match="tokens are kept in .*HF_DATASETS_CACHE names another folder"):
        tokenize_once(tokenizer, texts(3))


def test_progress_is_reported_in_tokens(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr("tptt.progress.SILENT", 0.0)
    with caplog.at_level(logging.INFO, "tptt"):
        tokenize_once(tokenizer, texts(300), 4000, "tokenize the text")
    assert "tokenize the text: done, 4,000 tokens" in caplog.text
    assert "of 4,000 tokens (" in caplog.text


# ---- fingerprints of tokenizers ------------------------------------------------------------------------------------


def test_the_last_call_of_a_tokenizer_does_not_matter(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["one", "one two"], padding=True, truncation=True, max_length=8)
    assert tokenizer.backend_tokenizer.padding is not None, "nothing was tested"
    assert tokenizer_fingerprint(tokenizer) == before


def test_a_tokenizer_written_in_python():
    tokenizer, same, other = ByT5Tokenizer(), ByT5Tokenizer(), ByT5Tokenizer(extra_ids=3)
    assert not tokenizer.is_fast
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(same) != tokenizer_fingerprint(other)
    assert tokenize_once(tokenizer, ["ab", "c"]).ids.tolist() == [100, 101, 1, 102, 1]


def test_what_changes_ids_changes_the_fingerprint(tokenizer):
    found = {tokenizer_fingerprint(tokenizer)}
    other = AutoTokenizer.from_pretrained(BASE)
    other.eos_token = "<|another|>"
    found.add(tokenizer_fingerprint(other))
    other = AutoTokenizer.from_pretrained(BASE)
    other.split_special_tokens = True
    found.add(tokenizer_fingerprint(other))
    assert len(found) == 3
