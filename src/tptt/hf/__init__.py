"""The only room that knows transformers and peft: how a memory gets into a model and out again."""

from typing import TYPE_CHECKING

from tptt.lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import calibrate as calibrate
    from .compat import is_lora_parameter as is_lora_parameter
    from .discovery import UnsupportedAttentionError as UnsupportedAttentionError
    from .discovery import find_attention as find_attention
    from .layouts import LAYOUTS as LAYOUTS
    from .layouts import Layout as Layout
    from .no_memory import NoMemory as NoMemory
    from .patch import attach_memory as attach_memory
    from .patch import attach_window as attach_window
    from .patch import detach_memory as detach_memory
    from .patch import set_mag_weight as set_mag_weight
    from .slots import Branches as Branches
    from .slots import MemoryLayer as MemoryLayer
    from .slots import is_memory_parameter as is_memory_parameter
    from .slots import memories as memories
    from .slots import memory_layers as memory_layers
    from .teacher import as_base as as_base
    from .teacher import attention_outputs as attention_outputs
    from .teacher import memory_squares as memory_squares
    from .teacher import softmax_as as softmax_as
    from .teacher import softmax_squares as softmax_squares
    from .teacher import window_changes as window_changes
    from .teacher import write_gates as write_gates

_HOMES = {
    "LAYOUTS": "layouts",
    "Branches": "slots",
    "Layout": "layouts",
    "MemoryLayer": "slots",
    "NoMemory": "no_memory",
    "UnsupportedAttentionError": "discovery",
    "as_base": "teacher",
    "attach_memory": "patch",
    "attach_window": "patch",
    "attention_outputs": "teacher",
    "calibrate": "calibration",
    "detach_memory": "patch",
    "find_attention": "discovery",
    "is_lora_parameter": "compat",
    "is_memory_parameter": "slots",
    "memories": "slots",
    "memory_layers": "slots",
    "memory_squares": "teacher",
    "set_mag_weight": "patch",
    "softmax_as": "teacher",
    "softmax_squares": "teacher",
    "window_changes": "teacher",
    "write_gates": "teacher",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
