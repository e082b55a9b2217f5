"""Token rows of equal length from documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def tokenize(tokenizer, documents: Iterable[str], limit: int | None = None) -> torch.Tensor:
    """One stream of token ids ``[n]``, documents parted by the end-of-sequence token; stops after ``limit`` tokens."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == 64:
            _extend(stream, tokenizer, batch, end)
            batch = []
            if limit is not None and len(stream) >= limit:
                break
    _extend(stream, tokenizer, batch, end)
    return torch.tensor(stream[:limit], dtype=torch.long)


def _extend(stream: list[int], tokenizer, batch: Sequence[str], end: list[int]) -> None:
    if not batch:
        return
    # verbose=False: documents are cut into rows afterwards, so their length is no cause for a warning
    for ids in tokenizer(list(batch), add_special_tokens=False, verbose=False)["input_ids"]:
        stream.extend(ids + end)


def pack_rows(stream: torch.Tensor, length: int) -> torch.Tensor:
    """Cut a stream ``[n]`` into rows ``[n // length, length]``; the remainder is dropped.

    Raises:
        ValueError: the stream is shorter than one row, or ``length`` is below 1.
    """
    if length < 1:
        raise ValueError(f"a row has 1 token or more, not {length}")
    rows = len(stream) // length
    if rows == 0:
        raise ValueError(f"the text has {len(stream)} tokens, one row needs {length}")
    return stream[: rows * length].view(rows, length)
