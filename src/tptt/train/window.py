"""The softmax window of a conversion: chosen where it is left open, warned of where there is none."""

from __future__ import annotations

import copy
import logging

from tptt.config import MemoryConfig
from tptt.hf.configuration import TpttConfig

logger = logging.getLogger("tptt")
MAX_WINDOW = 512
"""Tokens of the widest window that is chosen."""


def default_window(seq_len: int) -> int:
    """The window that is chosen for training rows of ``seq_len`` tokens: a quarter of the row, at most 512 tokens."""
    return max(1, min(MAX_WINDOW, seq_len // 4))


def decided_window(config: MemoryConfig | TpttConfig, seq_len: int) -> int | None:
    """The window of ``config`` for training rows of ``seq_len`` tokens: with "auto" `default_window`, or None where no layer
    has a softmax (``memory_only_layers="all"``)."""
    if config.max_self_attn_length != "auto":
        return config.max_self_attn_length
    return None if config.memory_only_layers == "all" else default_window(seq_len)


def with_window(config: TpttConfig, seq_len: int) -> TpttConfig:
    """``config`` with its `decided_window`; says which one was chosen, or what it means to have none."""
    config, given = copy.deepcopy(config), config.max_self_attn_length
    config.max_self_attn_length = window = decided_window(config, seq_len)
    if window is not None and given == "auto":
        logger.info("max_self_attn_length: a softmax window of %d tokens was chosen for rows of %d", window, seq_len)
    elif window is None and config.memory_only_layers != "all" and not config.bidirectional:
        logger.warning(
            "no softmax window: the cache holds all that the base's does, and the memories' states beside it. "
            "max_self_attn_length='auto' chooses a window, a number sets it"
        )
    return config
