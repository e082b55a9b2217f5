"""TPTT: a linear-attention memory of fixed size for pretrained Hugging Face transformers."""

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tptt.config import MemoryConfig, __version__
from tptt.hf import attach_memory, calibrate, detach_memory, set_mag_weight
from tptt.hf.configuration import TpttConfig
from tptt.hf.model import TpttModel
from tptt.inference import MemorySnapshot, Session, TpttPipeline, stream
from tptt.memory import LinearAttention
from tptt.train import AdjustMaGWeightCallback, LiZACallback, parameter_groups

AutoConfig.register("tptt", TpttConfig, exist_ok=True)
AutoModelForCausalLM.register(TpttConfig, TpttModel, exist_ok=True)
# Trainer's label smoother shifts the labels of the classes named here only
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["tptt"] = "TpttModel"

__all__ = [
    "AdjustMaGWeightCallback",
    "LiZACallback",
    "LinearAttention",
    "MemoryConfig",
    "MemorySnapshot",
    "Session",
    "TpttConfig",
    "TpttModel",
    "TpttPipeline",
    "__version__",
    "attach_memory",
    "calibrate",
    "detach_memory",
    "parameter_groups",
    "set_mag_weight",
    "stream",
]
