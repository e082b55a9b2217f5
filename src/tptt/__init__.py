"""TPTT: a linear-attention memory of fixed size for pretrained Hugging Face transformers.

Importing it imports neither torch nor transformers: a public name brings what it needs when it is first used.
"""

from typing import TYPE_CHECKING

from tptt.hf.auto import register_config
from tptt.lazy import lazy_names
from tptt.version import __version__

if TYPE_CHECKING:
    from tptt.config import MemoryConfig as MemoryConfig
    from tptt.hf import attach_memory as attach_memory
    from tptt.hf import calibrate as calibrate
    from tptt.hf import detach_memory as detach_memory
    from tptt.hf import set_mag_weight as set_mag_weight
    from tptt.hf.configuration import TpttConfig as TpttConfig
    from tptt.hf.model import TpttModel as TpttModel
    from tptt.inference import MemorySnapshot as MemorySnapshot
    from tptt.inference import Session as Session
    from tptt.inference import TpttPipeline as TpttPipeline
    from tptt.inference import stream as stream
    from tptt.memory import LinearAttention as LinearAttention
    from tptt.train import AdjustMaGWeightCallback as AdjustMaGWeightCallback
    from tptt.train import LiZACallback as LiZACallback
    from tptt.train import parameter_groups as parameter_groups

_HOMES = {
    "AdjustMaGWeightCallback": "train",
    "LiZACallback": "train",
    "LinearAttention": "memory",
    "MemoryConfig": "config",
    "MemorySnapshot": "inference",
    "Session": "inference",
    "TpttConfig": "hf.configuration",
    "TpttModel": "hf.model",
    "TpttPipeline": "inference",
    "attach_memory": "hf",
    "calibrate": "hf",
    "detach_memory": "hf",
    "parameter_groups": "train",
    "set_mag_weight": "hf",
    "stream": "inference",
}
__all__ = ["__version__", *_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

register_config()
