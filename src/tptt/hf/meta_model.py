"""A converted model without weights, on torch's meta device."""

from __future__ import annotations

from typing import Any

import torch

from .compat import model_from_config
from .configuration import TpttConfig
from .model import TpttModel


def skeleton(config: TpttConfig, dtype: torch.dtype, attn_implementation: str | None = None) -> TpttModel:
    """The converted model on the meta device: base in ``dtype``, LoRA and memory in float32, as they train.

    ``attn_implementation`` None is transformers' choice.
    """
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    base: Any = config.text_config
    before, base.dtype = base.dtype, dtype
    try:
        with torch.device("meta"):
            return model_from_config(TpttModel, config, dtype=dtype, **chosen)
    finally:
        base.dtype = before
