import itertools
import random
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tptt.assets import BASE
from tptt.data import Lexicon

PROSE = "\n".join(itertools.islice(topics.values(), 12))
_SOME = "".join(chr(c) for c in range(0x4E00, 0x4E00 + 300))


def chinese(characters: int = 20_000) -> str:
    """Text without spaces: long runs of characters between full stops."""
    rng = random.Random(0)
    runs = ("".join(rng.choices(_SOME, k=rng.randrange(13, 60))) for _ in range(characters // 36))
    return "。".join(runs)


def _byte_level(text):
    return AutoTokenizer.from_pretrained(BASE)


def _sentencepiece(text):
    """As Llama 2's: a space before every text, pieces that begin with it, bytes where there is no piece."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    core.train_from_iterator([text], trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def _unigram(text):
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=1200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    core.train_from_iterator(text.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def _wordpiece(text):
    """As BERT's: no case, no white space."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=["[UNK]"], show_progress=False)
    core.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


_KINDS = {"byte-level": _byte_level, "sentencepiece": _sentencepiece, "unigram": _unigram, "wordpiece": _wordpiece}


@pytest.fixture(scope="session", params=_KINDS)
def tokenizer(request):
    return _KINDS[request.param](PROSE)


@pytest.fixture(scope="session")
def lexicon():
    return Lexicon.of([PROSE])
