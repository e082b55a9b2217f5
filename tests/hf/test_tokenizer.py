"""AutoTokenizer reads the tokenizer in the folder of a converted model.

It asks AutoConfig first, which knows the type as soon as torch is imported: torch calls `tptt.autoload`. Where that is
switched off and nothing imports tptt, transformers takes the configuration for custom code and asks whether to run it,
unless it is told: with or without an answer the tokenizer is the same.
"""

import json
import os
import pty
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, ByT5Tokenizer, GPT2Tokenizer, LlamaTokenizer

from tptt import TpttModel
from tptt.autoload import register

TEXT = "w5 w6 hello w7"
QUESTION = "Do you wish to run the custom code"
LOAD = """
import json, sys
{imports}
found = AutoTokenizer.from_pretrained(sys.argv[1]{options})
print("FOUND", json.dumps([type(found).__name__, found({text!r})["input_ids"], found.pad_token, found.eos_token]))
"""


@pytest.fixture
def family():
    return "llama"


def word_level(tmp_path):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 61)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def gpt2(tmp_path):
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters |= {"he": 300, "<|endoftext|>": 301}
    return GPT2Tokenizer(vocab=letters, merges=[("h", "e")], pad_token="<|endoftext|>")


def llama(tmp_path):
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        c: i for i, c in enumerate("▁abcdefghijklmnopqrstuvwxyz0123456789", 3)
    }
    return LlamaTokenizer(vocab=pieces, merges=[], pad_token="</s>")


def bert(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w", "hello", *(f"##{i}" for i in range(10))]
    return BertTokenizer(vocab={p: i for i, p in enumerate(pieces)})


def byt5(tmp_path):
    """One that is written in Python."""
    return ByT5Tokenizer()


def unigram(tmp_path):
    inner = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in "abcdefghijklmnopqrstuvwxyz567")], 0)
    )
    inner.normalizer, inner.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>", eos_token="<unk>")


KINDS = [word_level, gpt2, llama, bert, byt5, unigram]


@pytest.fixture
def folder(config, tmp_path):
    """folder(kind) -> a folder with a converted model and a tokenizer, and what the base's own says of `TEXT`."""

    def make(kind, model_first=True):
        tokenizer, place = kind(tmp_path), tmp_path / "converted"
        savers = [tokenizer, TpttModel(config(feature_width=16))]
        for each in reversed(savers) if model_first else savers:
            each.save_pretrained(place)
        tokenizer.save_pretrained(tmp_path / "alone")
        (tmp_path / "alone" / "config.json").write_text('{"model_type": "llama"}')
        alone = AutoTokenizer.from_pretrained(tmp_path / "alone")
        return place, [type(alone).__name__, alone(TEXT)["input_ids"], alone.pad_token, alone.eos_token]

    return make


def in_a_process(place, imports, options="", terminal=False):
    """What AutoTokenizer finds in a process of its own, and everything that this process wrote."""
    code = LOAD.format(imports=imports, options=options, text=TEXT)
    ours, theirs = pty.openpty() if terminal else (None, subprocess.DEVNULL)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(place)],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        for end in (ours, theirs) if terminal else ():
            os.close(end)
    assert done.returncode == 0, done.stdout
    found = next(line for line in done.stdout.splitlines() if "FOUND" in line)
    return json.loads(found.partition("FOUND ")[2]), done.stdout


@pytest.mark.parametrize(("kind", "model_first"), [*((k, True) for k in KINDS), (gpt2, False), (byt5, False)])
def test_every_kind_of_tokenizer_without_a_question(folder, kind, model_first):
    place, want = folder(kind, model_first)
    found, said = in_a_process(place, "import tptt; from transformers import AutoTokenizer", terminal=True)
    assert found == want
    assert QUESTION not in said and "custom code" not in said and "instantiate a model of type" not in said


@pytest.mark.parametrize(
    "imports",
    [
        "from transformers import AutoTokenizer; import tptt",
        "import tptt; import transformers; AutoTokenizer = transformers.AutoTokenizer",
        "from tptt import TpttModel; from transformers import AutoTokenizer",
        "import tptt.cli; from transformers import AutoTokenizer",
    ],
)
def test_however_tptt_is_imported(folder, imports):
    place, want = folder(gpt2)
    found, said = in_a_process(place, imports, terminal=True)
    assert found == want and QUESTION not in said


IMPORT = "from transformers import AutoTokenizer"


def test_in_a_process_that_has_not_imported_it(folder):
    place, want = folder(gpt2)
    found, said = in_a_process(place, IMPORT, terminal=True)
    assert found == want and QUESTION not in said


def test_where_torch_calls_nobody(folder, monkeypatch):
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    place, want = folder(gpt2)
    load = f"{IMPORT}; assert 'tptt' not in sys.modules"
    found, said = in_a_process(place, load)
    assert found == want and QUESTION in said
    found, said = in_a_process(place, load, ", trust_remote_code=True", terminal=True)
    assert found == want and QUESTION not in said


def test_torch_is_imported_whatever_happens(monkeypatch):
    def broken():
        raise RuntimeError("no such name")

    monkeypatch.setattr("tptt.hf.auto.register_config", broken)
    with pytest.warns(UserWarning, match="does not know the model type 'tptt'.*no such name"):
        register()
