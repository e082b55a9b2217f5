"""The softmax window of a conversion: chosen where it is left open, warned of where there is none."""

from __future__ import annotations

import copy
import logging

from tptt.hf.configuration import TpttConfig

logger = logging.getLogger("tptt")
MAX_WINDOW = 512
"""Tokens of the widest window that is chosen."""


def default_window(seq_len: int) -> int:
    """The window that is chosen for training rows of ``seq_len`` tokens: a quarter of the row, at most 512 tokens."""
    return max(1, min(MAX_WINDOW, seq_len // 4))


def with_window(config: TpttConfig, seq_len: int) -> TpttConfig:
    """``config`` with a number in the place of ``max_self_attn_length="auto"``; says which, or what it means to have none.

    Layers without softmax (``memory_only_layers="all"``) need no window: they get none.
    """
    config = copy.deepcopy(config)
    if config.memory_only_layers == "all":
        if config.max_self_attn_length == "auto":
            config.max_self_attn_length = None
    elif config.max_self_attn_length == "auto":
        config.max_self_attn_length = default_window(seq_len)
        logger.info(
            "max_self_attn_length: a softmax window of %d tokens was chosen for rows of %d",
            config.max_self_attn_length,
            seq_len,
        )
    elif config.max_self_attn_length is None and not config.bidirectional:
        logger.warning(
            "no softmax window: the cache holds all that the base's does, and the memories' states beside it. "
            "max_self_attn_length='auto' chooses a window, a number sets it"
        )
    return config
