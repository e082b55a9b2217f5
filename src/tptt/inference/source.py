"""Token ids out of whatever text or ids come in, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from .ids import as_tensors, at_rest, check_range, leaves

_CHARACTERS = 65536
"""Text that is tokenized at once, at least; it is cut before white space, where tokenizers cut as well."""


def token_pieces(
    source: Any, tokenizer=None, first: bool = True, vocabulary: int | None = None
) -> Iterator[torch.Tensor]:
    """The ids of ``source`` as tensors [n] of any length.

    Args:
        source: text; ids, as `Session.read` takes them; or an iterable of any of these, however long.
        tokenizer: for text.
        first: a sequence begins here: its first special token (BOS) goes in front of text, where the tokenizer sets
            one.
        vocabulary: rows of the model's embedding; None: unknown.

    Raises:
        TypeError: the source is neither, or text comes without a tokenizer.
        ValueError: an id is negative or beyond the vocabulary, or an attention mask does not fit its ids. What lies in
            memory is checked as a whole before the first piece, what an iterator gives before its piece.
    """
    if at_rest(source):
        _check(source, tokenizer, vocabulary)
    text = ""
    for leaf in leaves(source):
        if isinstance(leaf, str):
            _check_text(tokenizer)
            for start in range(0, len(leaf), _CHARACTERS):
                text += leaf[start : start + _CHARACTERS]
                cut = _last_space(text) if len(text) >= _CHARACTERS else 0
                if cut:
                    yield _tokenized(text[:cut], tokenizer, first, vocabulary)
                    text, first = text[cut:], False
            continue
        if text:
            yield _tokenized(text, tokenizer, first, vocabulary)
            text, first = "", False
        check_range(leaf, vocabulary)
        for piece in as_tensors(leaf):
            first = False
            yield piece
    if text:
        yield _tokenized(text, tokenizer, first, vocabulary)


def _check(source: Any, tokenizer, vocabulary: int | None) -> None:
    for leaf in leaves(source):
        if isinstance(leaf, str):
            _check_text(tokenizer)
        else:
            check_range(leaf, vocabulary)


def _check_text(tokenizer) -> None:
    if tokenizer is None:
        raise TypeError("text needs a tokenizer: pass tokenizer=")


def in_chunks(pieces: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The same ids in tensors of ``size``; the last may be shorter."""
    held: list[torch.Tensor] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            joined = torch.cat(held)
            whole = count - count % size
            yield from joined[:whole].split(size)
            held, count = [joined[whole:]], count - whole
    if count:
        yield torch.cat(held)


def _last_space(text: str) -> int:
    """Where the last white space that follows something else begins; 0: nowhere."""
    for i in range(len(text) - 1, 0, -1):
        if text[i].isspace() and not text[i - 1].isspace():
            return i
    return 0


def _tokenized(text: str, tokenizer, first: bool, vocabulary: int | None) -> torch.Tensor:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # its length is no trouble here
    if first and tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        ids = [tokenizer.bos_token_id, *ids]
    found = np.array(ids, dtype=np.int64)
    check_range(found, vocabulary)
    return torch.from_numpy(found)
