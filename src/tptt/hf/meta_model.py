"""A converted model without weights, on torch's meta device."""

from __future__ import annotations

from typing import Any

import torch

from .compat import model_from_config
from .configuration import TpttConfig
from .model import TpttModel


def skeleton(config: TpttConfig, dtype: torch.dtype) -> TpttModel:
    """The converted model on the meta device: base in ``dtype``, LoRA and memory in float32, as they train."""
    base: Any = config.text_config
    before, base.dtype = base.dtype, dtype
    try:
        with torch.device("meta"):
            return model_from_config(TpttModel, config, dtype=dtype)
    finally:
        base.dtype = before
