"""Measures of a model: perplexity, recall inside and beyond the window, memory held."""

from .memory_held import Held, cache_bytes, kv_entries, memory_held
from .perplexity import perplexity
from .recall import RecallScore, recall_accuracy

__all__ = [
    "Held",
    "RecallScore",
    "cache_bytes",
    "kv_entries",
    "memory_held",
    "perplexity",
    "recall_accuracy",
]
