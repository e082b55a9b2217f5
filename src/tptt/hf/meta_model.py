"""A converted model without weights, on torch's meta device."""

from __future__ import annotations

from typing import Any

import torch

from .configuration import TpttConfig
from .model import TpttModel


def skeleton(config: TpttConfig, dtype: torch.dtype) -> TpttModel:
    """The converted model on the meta device: base in ``dtype``, LoRA and memory in float32, as they train."""
    base: Any = config.text_config
    before, base.dtype = base.dtype, dtype
    try:
        with torch.device("meta"):
            return TpttModel._from_config(config, dtype=dtype)
    finally:
        base.dtype = before
