import pytest
import torch
from transformers import AutoTokenizer

from tptt.assets import BASE
from tptt.data import pack_rows, tokenize


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.mark.parametrize("documents", [1, 63, 64, 65, 128, 130])
def test_every_document_is_kept_in_order_and_ended(tokenizer, documents):
    texts = [f"x = {i}\n" for i in range(documents)]
    expected = [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert tokenize(tokenizer, texts).tolist() == expected


@pytest.mark.parametrize("limit", [0, 1, 50, 100_000])
def test_limit_is_a_prefix(tokenizer, limit):
    texts = [f"x = {i}\n" for i in range(200)]
    whole = tokenize(tokenizer, texts)
    assert torch.equal(tokenize(tokenizer, texts, limit), whole[:limit])


def test_no_document_is_read_beyond_the_limit(tokenizer):
    def endless():
        while True:
            yield "import os\n"

    assert len(tokenize(tokenizer, endless(), limit=50)) == 50


def test_nothing_gives_an_empty_stream(tokenizer):
    stream = tokenize(tokenizer, [])
    assert stream.shape == (0,) and stream.dtype == torch.long


@pytest.mark.parametrize(("tokens", "length", "rows"), [(21, 7, 3), (27, 7, 3), (7, 7, 1), (5, 1, 5)])
def test_rows_hold_the_stream_and_drop_the_remainder(tokens, length, rows):
    stream = torch.arange(tokens)
    packed = pack_rows(stream, length)
    assert packed.shape == (rows, length)
    assert torch.equal(packed.flatten(), stream[: rows * length])


def test_errors():
    with pytest.raises(ValueError, match="has 3 tokens, one row needs 7"):
        pack_rows(torch.arange(3), 7)
    with pytest.raises(ValueError, match="1 token or more, not 0"):
        pack_rows(torch.arange(3), 0)
