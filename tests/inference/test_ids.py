"""What ids come in is read as those ids, or refused by an error that says what is wrong; nothing else is ever read."""

import array
import gzip
import io
from collections import UserDict
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BatchEncoding

from benchmarks.tiny import tiny_model
from tests.families.models import build, randomize, tokens
from tptt import MemoryConfig, Session, attach_memory, stream
from tptt.assets import BASE
from tptt.inference import ids as ids_module
from tptt.inference.source import token_pieces

IDS = tokens(1, 40)[0].tolist()
NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
INTEGERS = ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"]


def read(source, tokenizer=None, vocabulary=None):
    pieces = list(token_pieces(source, tokenizer, vocabulary=vocabulary))
    assert all(p.dtype == torch.long and p.ndim == 1 for p in pieces)
    return torch.cat([torch.zeros(0, dtype=torch.long), *pieces]).tolist()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return randomize(attach_memory(build("llama"), MemoryConfig(max_self_attn_length=6)))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_type(dtype):
    of_numpy, of_torch = np.array(IDS).astype(dtype), torch.tensor(IDS).to(getattr(torch, dtype))
    for source in (of_numpy, of_torch):
        forms = [source, source[None], list(source), iter(source), source[::1], [source[:9], source[9:]]]
        for form in forms + [{"input_ids": source}, {"input_ids": source[None]}, {"input_ids": list(source)}]:
            assert read(form) == IDS
    assert read(of_numpy.astype(of_numpy.dtype.newbyteorder(">"))) == IDS
    assert read(of_numpy.astype(object)) == IDS


@pytest.mark.parametrize(
    "form",
    [
        tuple,
        lambda x: array.array("i", x),
        lambda x: [x],
        lambda x: [x[:7], x[7:]],
        lambda x: [[x[:7]], [[x[7:]]]],
        lambda x: (i for i in x),
        lambda x: (np.array(x[i : i + 3]) for i in range(0, len(x), 3)),
        lambda x: [*x[:5], np.array(x[5:9]), torch.tensor([x[9:]])],
        lambda x: [np.int32(i) for i in x],
        lambda x: [torch.tensor(i) for i in x],
        lambda x: torch.tensor(x)[:, None].unbind(),
        lambda x: pandas.array(x),
        lambda x: Dataset.from_dict({"input_ids": [x[:7], x[7:]]}),
        lambda x: Dataset.from_dict({"input_ids": [x[:7], x[7:]]})["input_ids"],
        lambda x: Dataset.from_dict({"input_ids": [x], "text": ["input_ids"]})[0],
        lambda x: UserDict(input_ids=x, token_type_ids=[0] * len(x)),
        lambda x: BatchEncoding({"input_ids": [x], "attention_mask": [[1] * len(x)]}),
        lambda x: [{"input_ids": x[:7]}, {"input_ids": x[7:]}],
        lambda x: {"input_ids": [0, 0, *x, 1], "attention_mask": [0, 0, *[1] * len(x), 0]},
        lambda x: {"input_ids": np.array([[*x, 1]]), "attention_mask": np.array([[True] * len(x) + [False]])},
        lambda x: {"input_ids": torch.tensor([[0, *x]]), "attention_mask": torch.tensor([[0] + [1] * len(x)])},
        lambda x: {"input_ids": x, "attention_mask": None},
    ],
)
def test_every_container(form, monkeypatch):
    assert read(form(IDS)) == IDS
    monkeypatch.setattr(ids_module, "AT_ONCE", 6)
    assert read(form(IDS)) == IDS


def test_nothing_and_everything_padded():
    for source in ([], (), np.zeros(0, np.int64), torch.zeros(1, 0, dtype=torch.long), iter(()), {"input_ids": []}):
        assert read(source) == []
    assert read({"input_ids": [3, 4], "attention_mask": [0, 0]}) == []
    assert read(range(3, 9)) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "source, error, message",
    [
        (None, TypeError, "text, token ids or an iterable of them expected, got NoneType"),
        (3, TypeError, "got int: one id goes in a list"),
        (True, TypeError, "got bool"),
        (2.5, TypeError, "got float"),
        ([3, None], TypeError, "got NoneType"),
        ([3, True], TypeError, "got bool"),
        ([3, 4.0], TypeError, "got float"),
        ([np.float32(3)], TypeError, "got float32"),
        ([np.bool_(True)], TypeError, "got bool"),
        ([torch.tensor(3.0)], TypeError, "torch.float32"),
        (np.array([3.0]), TypeError, "an array of float64"),
        (np.array([True]), TypeError, "an array of bool"),
        (np.array([b"3"]), TypeError, "bytes are neither text nor token ids"),
        (torch.tensor([3.0]), TypeError, "a tensor of torch.float32"),
        (torch.tensor([True]), TypeError, "a tensor of torch.bool"),
        (torch.empty(3, dtype=torch.long, device="meta"), TypeError, "meta"),
        (np.ones((2, 3), np.int64), TypeError, r"shape \[2, 3\]: a session reads one sequence"),
        (torch.ones(2, 3, dtype=torch.long), TypeError, r"shape \[2, 3\]"),
        (torch.ones(1, 1, 3, dtype=torch.long), TypeError, r"shape \[1, 1, 3\]"),
        (b"text", TypeError, r"bytes: bytes are neither text nor token ids; open the file as text .*decode"),
        (bytearray(b"text"), TypeError, "bytearray: bytes are"),
        (memoryview(b"text"), TypeError, "memoryview: bytes are"),
        (io.BytesIO(b"text"), TypeError, "BytesIO: bytes are"),
        (io.BytesIO(b""), TypeError, "BytesIO: bytes are"),
        (gzip.GzipFile(fileobj=io.BytesIO(b""), mode="w"), TypeError, "GzipFile: bytes are"),
        ([b"line"], TypeError, "bytes: bytes are"),
        (Path("book.txt"), TypeError, "open the file"),
        ({3, 4}, TypeError, "set: its items have no order"),
        ({"input_ids": [3]}.keys(), TypeError, "dict_keys: its items have no order"),
        ({"input_ids": [3]}.values(), TypeError, "dict_values: its items have no order"),
        ({}, TypeError, "this dict has nothing"),
        ({"text": "a"}, TypeError, "reads the input_ids of a mapping, and this dict has text"),
        ([{"role": "user", "content": "a"}], TypeError, "this dict has role, content.*apply_chat_template"),
        (pandas.DataFrame({"input_ids": [3]}), TypeError, "DataFrame: .* this is a table"),
        ({"input_ids": None}, TypeError, "got NoneType"),
        ({"input_ids": "text"}, TypeError, "input_ids holds text"),
        ({"input_ids": [3.5]}, TypeError, "got float|rows"),
        ({"input_ids": [[3, 4], [5, 6]]}, TypeError, "input_ids has 2 rows, and a session reads one sequence"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, TypeError, r"shape \[2, 3\]"),
        ({"input_ids": [3], "inputs_embeds": torch.ones(1, 1, 4)}, TypeError, "has inputs_embeds as well"),
        ({"input_ids": [3], "pixel_values_videos": torch.ones(1)}, TypeError, "has pixel_values_videos as well"),
        ({"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]}, ValueError, "leaves out tokens within the text"),
        ({"input_ids": [3, 4], "attention_mask": [1]}, ValueError, "0 or 1 for each of the 2 input_ids"),
        ({"input_ids": [3, 4], "attention_mask": [1, 2]}, ValueError, "0 or 1 for each"),
        ({"input_ids": [3], "attention_mask": torch.ones(1)}, TypeError, "attention_mask has 1 for tokens"),
        ({"input_ids": [3], "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.long)}, TypeError, "integers"),
        ([3, -100], ValueError, "token ids are 0 or more, got -100"),
        ([3, 1 << 70], ValueError, "beyond the model's vocabulary: valid are 0 to 63"),
        (np.array([3, 2**64 - 1], np.uint64), ValueError, "token id 18446744073709551615 is beyond"),
        (torch.tensor([3, 64]), ValueError, "token id 64 is beyond the model's vocabulary: valid are 0 to 63"),
        ([[3], {"input_ids": [64]}], ValueError, "token id 64 is beyond"),
        (range(-1, 3), ValueError, "got -1"),
    ],
)
def test_what_is_no_ids_is_refused(tokenizer, source, error, message):
    with pytest.raises(error, match=message):
        read(source, tokenizer, 64)


@pytest.mark.parametrize("method", ["read", "ask", "generate"])
def test_nothing_is_read_before_ids_in_memory_are_checked(model, method):
    session = Session(model, chunk_size=4).read(IDS)
    options = {} if method == "read" else NEW
    size = model.get_input_embeddings().num_embeddings
    for source, error in (([*IDS, size], ValueError), ([*IDS, 3.5], TypeError), ([IDS, [-1]], ValueError)):
        with pytest.raises(error):
            getattr(session, method)(source, **options)
        assert session.tokens == len(IDS)
    assert session.read([size - 1]).tokens == len(IDS) + 1


def test_an_iterator_is_not_used_up_by_the_check(model):
    assert stream(model, [iter(IDS), IDS]).tokens == 2 * len(IDS)
    assert stream(model, {"input_ids": iter(IDS)}).tokens == len(IDS)


def test_asking_by_every_container(model):
    session = stream(model, IDS)
    want = session.ask(IDS[:5], **NEW)
    for form in (np.array(IDS[:5], np.uint16), iter(IDS[:5]), BatchEncoding({"input_ids": [IDS[:5]]})):
        assert torch.equal(session.ask(form, **NEW), want)
    assert torch.equal(session.generate({"input_ids": torch.tensor([IDS[:5]])}, **NEW), want)


def test_what_a_tokenizer_returns(tokenizer):
    model = randomize(attach_memory(tiny_model("llama", vocab_size=len(tokenizer)), MemoryConfig()))
    text = "The history of the city is long. " * 3
    want = tokenizer(text)["input_ids"]
    for form in (None, "pt", "np"):
        assert read(tokenizer(text, return_tensors=form)) == want
    padded = tokenizer([text], padding="max_length", max_length=len(want) + 9, return_tensors="pt")
    assert read(padded) == want
    with pytest.raises(TypeError, match=r"2 rows|shape \[2"):
        read(tokenizer([text, text]))
    assert stream(model, iter([text[:20], text[20:]]), tokenizer).tokens == len(want)
    assert read(np.array([text]), tokenizer) == want


def test_text_of_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer, model):
    with pytest.raises(ValueError, match="beyond the model's vocabulary"):
        stream(model, "The history of the city is long.", tokenizer)
