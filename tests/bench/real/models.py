"""A tiny random base as a plain folder, with a tokenizer of words, and a prepared folder with a few rows."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.real.rows import Row, cell_file, write_rows
from benchmarks.tiny import randomized

from .conftest import CHAT

NAME = "tiny"
WORDS = [f"w{i}" for i in range(80)]


def write_base(folder):
    """A random Llama of two layers and a tokenizer of 80 words; returns the folder."""
    known = ["[UNK]", "<s>", "</s>", "user", "assistant", *WORDS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="</s>")
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(known), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=2, pad_token_id=2, bos_token_id=None,
    )  # fmt: skip
    randomized(LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def row(seed, task="niah_single_1", length=1024, table="ruler", answers=("w3",), judge="all", words=40, room=4):
    """A row whose context has ``words`` words."""
    context = " ".join(WORDS[(seed + 7 * i) % len(WORDS)] for i in range(words))
    return Row(table, task, length, seed, "test", context, " w1 w2", "w5", list(answers), judge, room)


def write_prepared(folder, rows):
    """The rows and texts of a prepared folder; returns it."""
    cells = {}
    for one in rows:
        cells.setdefault((one.table, one.task, one.length), []).append(one)
    for (table, task, length), found in cells.items():
        write_rows(cell_file(folder, NAME, "test", table, task, length), found)
    (folder / "text").mkdir()
    for kind in ("essays", "paragraphs"):
        text = " ".join(WORDS[(i * i + len(kind)) % len(WORDS)] for i in range(1100))
        (folder / "text" / f"{kind}-test.txt").write_text(text, encoding="utf-8")
    return folder
