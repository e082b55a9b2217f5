"""Token ids out of whatever text or ids come in, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

_CHARACTERS = 65536
"""Text that is tokenized at once, at least; it is cut before white space, where tokenizers cut as well."""


def token_pieces(source: Any, tokenizer=None, first: bool = True) -> Iterator[torch.Tensor]:
    """The ids of ``source`` as tensors [n] of any length.

    Args:
        source: text, ids [n] or [1, n], or an iterable of any of these or of single ids, however long.
        tokenizer: for text.
        first: a sequence begins here: its first special token (BOS) goes in front of text, where the tokenizer sets one.

    Raises:
        TypeError: the source is neither, or text comes without a tokenizer.
    """
    if isinstance(source, str):
        source = [source[i : i + _CHARACTERS] for i in range(0, len(source), _CHARACTERS)]
    if isinstance(source, torch.Tensor):
        yield _row(source)
        return
    if not isinstance(source, Iterable):
        raise TypeError(f"text, token ids or an iterable of them expected, got {type(source).__name__}")
    text = ""
    single: list[int] = []
    for item in source:
        if isinstance(item, str):
            if tokenizer is None:
                raise TypeError("text needs a tokenizer: pass tokenizer=")
            yield from _flush(single)
            text += item
            cut = _last_space(text) if len(text) >= _CHARACTERS else 0
            if cut:
                yield _tokenized(text[:cut], tokenizer, first)
                text, first = text[cut:], False
            continue
        if text:
            yield _tokenized(text, tokenizer, first)
            text = ""
        first = False
        if isinstance(item, int):
            single.append(item)
            if len(single) == _CHARACTERS:
                yield from _flush(single)
        else:
            yield from _flush(single)
            yield _row(torch.as_tensor(item))
    yield from _flush(single)
    if text:
        yield _tokenized(text, tokenizer, first)


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


def _row(ids: torch.Tensor) -> torch.Tensor:
    if ids.is_floating_point() or ids.dtype == torch.bool or not (ids.ndim == 1 or (ids.ndim == 2 and len(ids) == 1)):
        raise TypeError(f"token ids are integers [n] or [1, n], got {ids.dtype} {list(ids.shape)}")
    return ids.reshape(-1).long()


def _flush(single: list[int]) -> Iterator[torch.Tensor]:
    if single:
        yield torch.tensor(single)
        single.clear()


def _last_space(text: str) -> int:
    """Where the last white space that follows something else begins; 0: nowhere."""
    for i in range(len(text) - 1, 0, -1):
        if text[i].isspace() and not text[i - 1].isspace():
            return i
    return 0


def _tokenized(text: str, tokenizer, first: bool) -> torch.Tensor:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # its length is no trouble here
    if first and tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        ids = [tokenizer.bos_token_id, *ids]
    return torch.tensor(ids, dtype=torch.long)
