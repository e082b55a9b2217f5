"""Token ids out of what they come in: lists, arrays, tensors, what a tokenizer returns, rows of a data set."""

from __future__ import annotations

import io
import operator
from collections.abc import Iterable, Iterator, Mapping, MappingView, Set
from os import PathLike
from typing import Any

import numpy as np
import torch

AT_ONCE = 65536
"""Ids that are checked and converted at once: an array of a file on disk may be larger than memory."""
_OTHER_INPUTS = ("inputs_embeds", "pixel_values", "input_features", "input_values")
"""How the names of a model's inputs begin that are no token ids."""


def leaves(source: Any) -> Iterator[str | np.ndarray]:
    """Text, and arrays [n] of ids of any integer type, in the order in which they lie in ``source``.

    Raises:
        TypeError: something in it is neither text nor token ids.
        ValueError: a mapping's attention mask does not fit its ids.
    """
    if isinstance(source, str):
        yield source
    elif (row := _array(source)) is not None:
        yield row
    else:
        yield from _items(_iterable(source))


def at_rest(source: Any) -> bool:
    """Whether going through ``source`` uses nothing up, so that it can be checked as a whole first."""
    if isinstance(source, list | tuple):
        return all(map(at_rest, source))
    if isinstance(source, Mapping):
        return at_rest(source.get("input_ids"))
    return isinstance(source, str | bytes | range | torch.Tensor | np.ndarray) or not isinstance(source, Iterable)


def check_range(ids: np.ndarray, vocabulary: int | None) -> None:
    """Refuse ids that the model has no embedding for.

    Args:
        ids: [n], any integer type.
        vocabulary: rows of the model's embedding; None: unknown.

    Raises:
        ValueError: an id is negative, or not below ``vocabulary``.
    """
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        low, high = int(part.min()), int(part.max())
        if low < 0:
            raise ValueError(f"token ids are 0 or more, got {low}")
        if vocabulary is not None and high >= vocabulary:
            raise ValueError(f"token id {high} is beyond the model's vocabulary: valid are 0 to {vocabulary - 1}")


def as_tensors(ids: np.ndarray) -> Iterator[torch.Tensor]:
    """The ids as int64 tensors of at most `AT_ONCE`; values beyond int64 are refused by `check_range` before."""
    for start in range(0, len(ids), AT_ONCE):
        yield torch.from_numpy(ids[start : start + AT_ONCE].astype(np.int64))


def _items(source: Iterable) -> Iterator[str | np.ndarray]:
    single: list[int] = []
    for item in source:
        if _is_id(item):
            single.append(operator.index(item))
            if len(single) < AT_ONCE:
                continue
        if single:
            yield _integers(single)
            single = []
        if not _is_id(item):
            yield from leaves(item)
    if single:
        yield _integers(single)


def _integers(ids: list[int]) -> np.ndarray:
    """As Python's integers where they are beyond int64, so that `check_range` names the value."""
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        return np.array(ids, dtype=object)


def _is_id(item: Any) -> bool:
    """Whether ``item`` is one integer: Python's, numpy's, or one of a tensor or array without dimensions."""
    if type(item) is int:
        return True
    if isinstance(item, bool | np.bool_):
        return False
    if isinstance(item, torch.Tensor):
        return item.ndim == 0 and item.dtype in _INTEGERS and not item.is_meta
    if isinstance(item, np.ndarray):
        return item.ndim == 0 and item.dtype.kind in "iu"
    return hasattr(item, "__index__")


def _array(source: Any) -> np.ndarray | None:
    """The ids of a tensor, an array or a mapping, [n]; None: ``source`` is none of them."""
    if isinstance(source, Mapping):
        return _of_mapping(source)
    if isinstance(source, torch.Tensor):
        return _of_tensor(source)
    if isinstance(source, np.ndarray) and source.dtype.kind not in "OUS":
        return _of_array(source)
    return None


_INTEGERS = frozenset(
    (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
)


def _of_tensor(ids: torch.Tensor) -> np.ndarray:
    if ids.dtype not in _INTEGERS or ids.layout is not torch.strided or ids.is_meta:
        raise TypeError(
            f"token ids are integers [n] or [1, n], got a tensor of {ids.dtype}, {ids.layout}, {ids.device}"
        )
    return _row(ids.cpu().numpy())


def _of_array(ids: np.ndarray) -> np.ndarray:
    if ids.dtype.kind not in "iu":
        raise TypeError(f"token ids are integers [n] or [1, n], got an array of {ids.dtype}")
    return _row(ids)


def _row(ids: np.ndarray) -> np.ndarray:
    if not (ids.ndim == 1 or (ids.ndim == 2 and len(ids) == 1)):
        raise TypeError(
            f"token ids are integers [n] or [1, n], got the shape {list(ids.shape)}: a session reads one sequence; "
            "pass each row of a batch to a session of its own"
        )
    return ids.reshape(-1)


def _of_mapping(found: Mapping) -> np.ndarray:
    """The ids of what a tokenizer returns or of a row of a data set, without its padding."""
    keys = [str(key) for key in found]
    if "input_ids" not in keys:
        raise TypeError(
            f"a session reads the input_ids of a mapping, and this {type(found).__name__} has "
            f"{', '.join(keys) or 'nothing'}: pass its text or its ids themselves (a chat: what "
            "tokenizer.apply_chat_template returns)"
        )
    other = [k for k in keys if k.startswith(_OTHER_INPUTS) and found[k] is not None]
    if other:
        raise TypeError(
            f"a session reads token ids alone, and this {type(found).__name__} has {', '.join(other)} as well"
        )
    ids, mask = _one_row(found["input_ids"], "input_ids"), found.get("attention_mask")
    return ids if mask is None else _without_padding(ids, _one_row(mask, "attention_mask"))


def _one_row(value: Any, name: str) -> np.ndarray:
    """[n] of the entry ``name`` of a mapping, where a list of lists is a batch of rows."""
    if isinstance(value, list | tuple) and any(not _is_id(x) and not isinstance(x, bool) for x in value):
        if len(value) != 1:
            raise TypeError(f"{name} has {len(value)} rows, and a session reads one sequence: pass one row's ids")
        value = value[0]
    if name == "attention_mask":
        value = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if value.dtype.kind not in "iub":
            raise TypeError(f"attention_mask has 1 for tokens and 0 for padding, got {value.dtype}")
        return _row(value)
    found = list(leaves(value))
    if any(isinstance(x, str) for x in found):
        raise TypeError(f"{name} holds text, and not token ids")
    return np.concatenate([x for x in found if isinstance(x, np.ndarray)]) if found else np.zeros(0, np.int64)


def _without_padding(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ids where ``mask`` is 1, which has to be one piece of the row."""
    if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"attention_mask [{len(mask)}] has to hold 0 or 1 for each of the {len(ids)} input_ids")
    (real,) = np.nonzero(mask)
    if not len(real):
        return ids[:0]
    start, end = int(real[0]), int(real[-1]) + 1
    if end - start != len(real):
        raise ValueError("attention_mask leaves out tokens within the text; padding is left out at its ends only")
    return ids[start:end]


def _iterable(source: Any) -> Iterable:
    """``source``, where it is an iterable whose items have an order and may be text or ids."""
    if isinstance(source, bytes | bytearray | memoryview | np.bytes_ | io.RawIOBase | io.BufferedIOBase):
        raise TypeError(
            f"{type(source).__name__}: bytes are neither text nor token ids; open the file as text "
            '(open(path, encoding="utf-8")), or decode them (data.decode("utf-8"))'
        )
    if isinstance(source, PathLike):
        raise TypeError(f'{type(source).__name__}: a path is no text; open the file: open(path, encoding="utf-8")')
    if isinstance(source, Set | MappingView):
        raise TypeError(f"{type(source).__name__}: its items have no order; pass a list of token ids")
    if isinstance(source, np.ndarray) and source.ndim:
        return source
    if hasattr(source, "keys") and hasattr(
        source, "__getitem__"
    ):  # a table, of which an iterator gives the names alone
        return _columns_refused(source)
    if isinstance(source, Iterable) and not isinstance(source, np.ndarray):
        return source
    raise TypeError(f"text, token ids or an iterable of them expected, got {type(source).__name__}{_why(source)}")


def _columns_refused(source: Any) -> Iterable:
    raise TypeError(
        f"{type(source).__name__}: text, token ids or an iterable of them expected, and this is a table; pass the "
        "values of one column as a list or an array"
    )


def _why(source: Any) -> str:
    return ": one id goes in a list" if _is_id(source) else ""
