"""The softmax window of a conversion: chosen where it is left open, warned of where there is none."""

from __future__ import annotations

import logging

from tptt.config import MemoryConfig
from tptt.hf.configuration import TpttConfig

logger = logging.getLogger("tptt.progress")
MAX_WINDOW = 512
"""Tokens of the widest window that is chosen."""
WITHOUT_WINDOW = (
    "there is no softmax window: the cache holds all that the base's does, and the memories' states beside it. "
    "max_self_attn_length: auto chooses a window, a number sets it"
)


def default_window(seq_len: int) -> int:
    """The window that is chosen for training rows of ``seq_len`` tokens: a quarter of the row, at most 512 tokens."""
    return max(1, min(MAX_WINDOW, seq_len // 4))


def decided_window(config: MemoryConfig, seq_len: int) -> int | None:
    """The window of ``config`` in tokens, chosen for training rows of ``seq_len`` tokens and told in the log of
    progress where it is "auto"; None: no window. Layers that all have a memory alone need none.
    """
    if config.max_self_attn_length != "auto":
        return config.window
    if config.memory_only_layers == "all":
        return None
    window = default_window(seq_len)
    logger.info("max_self_attn_length: %d tokens, chosen for rows of %d", window, seq_len)
    return window


def is_without_window(config: TpttConfig) -> bool:
    """Whether some layer of ``config`` has a memory and no window. Its own ``max_self_attn_length`` must be decided."""
    return config.max_self_attn_length is None and config.memory_only_layers != "all" and config.layers != "auto"
