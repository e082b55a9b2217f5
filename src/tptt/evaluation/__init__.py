"""Measures of a model: perplexity, recall inside and beyond the window, what its cache holds; and its invariants."""

from tptt.hf.cache_formula import CacheFormula, break_even, state_in_tokens
from tptt.hf.cache_size import CacheSize, measured_size

from .branches import BranchUse, LayerUse, branch_use, layer_use, mag_weight
from .cache_growth import cache_growth
from .kv_share import LayerKV, held_kv, layer_kv
from .perplexity import perplexity, perplexity_by_position
from .recall import RecallScore, recall_accuracy, recall_by_generation
from .tables import markdown_table
from .verify import CHECKS, NotApplicable, verify

__all__ = [
    "CHECKS",
    "BranchUse",
    "CacheFormula",
    "CacheSize",
    "LayerKV",
    "LayerUse",
    "NotApplicable",
    "RecallScore",
    "branch_use",
    "break_even",
    "cache_growth",
    "held_kv",
    "layer_kv",
    "layer_use",
    "mag_weight",
    "markdown_table",
    "measured_size",
    "perplexity",
    "perplexity_by_position",
    "recall_accuracy",
    "recall_by_generation",
    "state_in_tokens",
    "verify",
]
