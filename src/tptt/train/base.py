"""What a conversion asks of its base before it is loaded: rows it can read, and its tokenizer."""

from __future__ import annotations

from transformers import AutoTokenizer

from tptt.hf.configuration import TpttConfig, base_error
from tptt.inference.session import position_limit

from .settings import TrainingSettings

LONGEST = 512
"""Tokens of a row where nobody says and the base could read more."""


def row_length(settings: TrainingSettings, base_config) -> int:
    """Tokens of a training row (with ``tbptt_chunks``, of a chunk of it)."""
    return settings.seq_len or min(getattr(base_config, "max_position_embeddings", None) or LONGEST, LONGEST)


def load_tokenizer(config: TpttConfig, **options):
    """The base's tokenizer.

    Raises:
        OSError: there is none.
    """
    name, place = config.base_model_name, config.gguf_place()
    if place is not None:
        name, options = place.folder, options | place.options()
    try:
        return AutoTokenizer.from_pretrained(name, revision=config.base_model_revision, **options)
    except (OSError, ValueError) as error:
        raise base_error(str(config.base_model_name), error) from error


def check_reach(base, tokens: int) -> None:
    """Raises ValueError where a ``base`` with a table of positions cannot read ``tokens`` tokens."""
    limit = position_limit(base)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"the base has positions for {limit} tokens, rows of {tokens} (seq_len * tbptt_chunks) are too long"
        )
