"""How a memory gets into a model and out again."""

from .attach import attach_memory, detach_memory, memories, set_mag_weight
from .calibrate import calibrate
from .discovery import UnsupportedAttentionError, find_attention
from .layouts import LAYOUTS, Layout

__all__ = [
    "LAYOUTS",
    "Layout",
    "UnsupportedAttentionError",
    "attach_memory",
    "calibrate",
    "detach_memory",
    "find_attention",
    "memories",
    "set_mag_weight",
]
