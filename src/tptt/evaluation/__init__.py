"""Measures of a model: perplexity, recall inside and beyond the window, memory held; and its invariants."""

from .branches import BranchUse, LayerUse, branch_use, layer_use, mag_weight
from .kv_share import LayerKV, held_kv, kv_bytes, layer_kv
from .memory_held import Held, cache_bytes, kv_entries, memory_held
from .perplexity import perplexity, perplexity_by_position
from .recall import RecallScore, recall_accuracy, recall_by_generation
from .tables import markdown_table
from .verify import CHECKS, NotApplicable, verify

__all__ = [
    "CHECKS",
    "BranchUse",
    "Held",
    "LayerKV",
    "LayerUse",
    "NotApplicable",
    "RecallScore",
    "branch_use",
    "cache_bytes",
    "held_kv",
    "kv_bytes",
    "kv_entries",
    "layer_kv",
    "layer_use",
    "mag_weight",
    "markdown_table",
    "memory_held",
    "perplexity",
    "perplexity_by_position",
    "recall_accuracy",
    "recall_by_generation",
    "verify",
]
