"""How a memory gets into a model and out again."""

from .attach import attach_memory, detach_memory, memories, set_mag_weight
from .calibrate import calibrate
from .layouts import LAYOUTS, UnsupportedAttentionError, find_attention

__all__ = [
    "LAYOUTS",
    "UnsupportedAttentionError",
    "attach_memory",
    "calibrate",
    "detach_memory",
    "find_attention",
    "memories",
    "set_mag_weight",
]
