"""Measures of a model: perplexity, recall inside and beyond the window, memory held; and its invariants."""

from .memory_held import Held, cache_bytes, kv_entries, memory_held
from .perplexity import perplexity
from .recall import RecallScore, recall_accuracy
from .tables import markdown_table
from .verify import CHECKS, NotApplicable, verify

__all__ = [
    "CHECKS",
    "Held",
    "NotApplicable",
    "RecallScore",
    "cache_bytes",
    "kv_entries",
    "markdown_table",
    "memory_held",
    "perplexity",
    "recall_accuracy",
    "verify",
]
