"""Text and recall rows: what the memory is trained on and measured with. Imports nothing of tptt."""

from .drills import DrillRows
from .files import TextWarning
from .formats import FORMATS, chosen_formats
from .lexicon import Lexicon
from .recall import IGNORE, Draws, RecallBatch, RecallRows, RecallVocabulary
from .rows import pack_rows, tokenize
from .text import TextSplit, installed_text, load_text, stdlib_text

__all__ = [
    "FORMATS",
    "IGNORE",
    "DrillRows",
    "Draws",
    "Lexicon",
    "RecallBatch",
    "RecallRows",
    "RecallVocabulary",
    "TextSplit",
    "TextWarning",
    "chosen_formats",
    "installed_text",
    "load_text",
    "pack_rows",
    "stdlib_text",
    "tokenize",
]
