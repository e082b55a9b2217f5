"""The only room that knows transformers and peft: how a memory gets into a model and out again."""

from .calibrate import calibrate
from .compat import is_lora_parameter
from .discovery import UnsupportedAttentionError, find_attention
from .layouts import LAYOUTS, Layout
from .patch import attach_memory, detach_memory, set_mag_weight
from .slots import Branches, MemoryLayer, is_memory_parameter, memories, memory_layers
from .teacher import as_base, attention_outputs, memory_squares, softmax_as, softmax_squares, write_gates

__all__ = [
    "LAYOUTS",
    "Branches",
    "Layout",
    "MemoryLayer",
    "UnsupportedAttentionError",
    "as_base",
    "attach_memory",
    "attention_outputs",
    "calibrate",
    "detach_memory",
    "find_attention",
    "is_lora_parameter",
    "is_memory_parameter",
    "memories",
    "memory_layers",
    "memory_squares",
    "set_mag_weight",
    "softmax_as",
    "softmax_squares",
    "write_gates",
]
