"""Text and recall rows: what the memory is trained on and measured with. Imports nothing of tptt."""

from .recall import IGNORE, RecallRows, RecallVocabulary
from .rows import pack_rows, tokenize
from .text import TextSplit, load_text, stdlib_text

__all__ = [
    "IGNORE",
    "RecallRows",
    "RecallVocabulary",
    "TextSplit",
    "load_text",
    "pack_rows",
    "stdlib_text",
    "tokenize",
]
