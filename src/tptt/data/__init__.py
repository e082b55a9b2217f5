"""Text and recall rows: what a memory is trained on and measured with. Imports `tptt.progress` alone."""

from .documents import Documents, TextSplit
from .formats import FORMATS, chosen_formats
from .key_value_recall import KeyValueRecall, RecallVocabulary
from .lexicon import Lexicon
from .recall_batch import IGNORE, RecallBatch, RecallSampler
from .recall_task import RecallTask
from .rows import pack_rows
from .standard_library import installed_text, stdlib_text
from .text import load_text
from .text_files import TextWarning
from .tokens import TokenizedText, tokenize, tokenize_once

__all__ = [
    "FORMATS",
    "IGNORE",
    "Documents",
    "KeyValueRecall",
    "Lexicon",
    "RecallBatch",
    "RecallSampler",
    "RecallTask",
    "RecallVocabulary",
    "TextSplit",
    "TextWarning",
    "TokenizedText",
    "chosen_formats",
    "installed_text",
    "load_text",
    "pack_rows",
    "stdlib_text",
    "tokenize",
    "tokenize_once",
]
