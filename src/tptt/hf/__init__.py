"""The only room that knows transformers and peft: how a memory gets into a model and out again."""

from .calibrate import calibrate
from .discovery import UnsupportedAttentionError, find_attention
from .layouts import LAYOUTS, Layout
from .patch import attach_memory, detach_memory, memories, set_mag_weight
from .teacher import as_base, attention_outputs, memory_squares, softmax_as, softmax_squares, write_gates

__all__ = [
    "LAYOUTS",
    "Layout",
    "UnsupportedAttentionError",
    "as_base",
    "attach_memory",
    "attention_outputs",
    "calibrate",
    "detach_memory",
    "find_attention",
    "memories",
    "memory_squares",
    "set_mag_weight",
    "softmax_as",
    "softmax_squares",
    "write_gates",
]
