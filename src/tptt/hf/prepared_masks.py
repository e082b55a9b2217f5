"""What a mask that is already prepared says of the tokens: which are real, and where packed sequences begin.

A 4-D mask can say anything, and a memory knows three things: padding, causal order, sequences that begin anew. A mask
that hides more from a query is refused, because the memory would show it. A mask that shows a query later tokens (the
parts of a picture) is honoured by the softmax alone: a memory is read from left to right.

Legend: B rows, H heads, T new tokens, n keys, P keys of a cache before the new tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

_HIDDEN = -1e4
"""Additive masks hide with this or less; what lies between it and 0 is a bias."""


class TokenMask(NamedTuple):
    """Of each new token whether it is real, [B, T] bool, and the number of its packed sequence, [B, T], or None; and
    whether some query sees later tokens."""

    real: torch.Tensor
    sequences: torch.Tensor | None
    looks_ahead: bool


def one_of_kinds(mask: Any) -> Any:
    """``mask``, or of a dictionary of masks by kind of layer the one that shows most; None: all show everything."""
    if not isinstance(mask, dict):
        return mask
    found = [mask[k] for k in sorted(mask, key=lambda k: k != "full_attention")]
    return next((x for x in found if x is not None), None)


def visible_keys(mask: torch.Tensor | BlockMask, tokens: int, keys: int) -> torch.Tensor:
    """[B or 1, T, n] bool, True where a query sees a key.

    Args:
        mask: [B, T, n] or [B, H, T, n], bool (who is seen) or additive, or a BlockMask.
        tokens, keys: T and n of a BlockMask.

    Raises:
        ValueError: the heads differ, or the mask holds biases.
    """
    if isinstance(mask, BlockMask):
        rows, heads = mask.shape[:2]
        device = mask.kv_num_blocks.device
        mask = create_mask(mask.mask_mod, rows, heads, tokens, keys, device=str(device))
    if mask.ndim == 3:
        mask = mask[:, None]
    if mask.shape[1] > 1 and not bool((mask == mask[:, :1]).all()):
        raise ValueError(
            "the attention mask differs from head to head, which a memory cannot follow: its heads share what is "
            "written"
        )
    mask = mask[:, 0]
    if not mask.is_floating_point():
        return mask.bool()
    if bool(((mask != 0) & (mask > _HIDDEN)).any()):
        raise ValueError(
            "the attention mask holds biases, which a memory cannot follow: an additive mask is 0 where a key is "
            f"seen and {_HIDDEN:.0f} or less where it is hidden"
        )
    return mask == 0


def token_mask(visible: torch.Tensor, past: int, window: int | None, bidirectional: bool) -> TokenMask:
    """What ``visible`` [B, T, n] says of the T tokens behind ``past`` ones.

    Args:
        visible: as `visible_keys` returns.
        past: P; of a sliding layer's mask, whose n is shorter, the keys before the new tokens.
        window: of the base's own sliding layers, whose mask this may be; None: it has none.
        bidirectional: tokens see each other in both directions.

    Raises:
        ValueError: it says something else than padding, causal order and packed sequences.
    """
    tokens = visible.shape[1]
    new = visible[:, :, past : past + tokens]
    real = new.diagonal(dim1=1, dim2=2)
    at = torch.arange(tokens, device=visible.device)
    later = at[None] > at[:, None]  # [T, T]
    asked = real[:, :, None]  # what a padded query sees does not matter
    looks_ahead = bool((new & asked & later).any())
    if bidirectional:
        if bool(((new != real[:, None]) & asked).any()):
            raise ValueError(_refusal("hides real tokens from each other", "padding"))
        return TokenMask(real, None, looks_ahead)
    causal = new & ~later
    expected = real[:, None] & ~later
    band = None if window is None else at[:, None] - at[None] < window

    def holds(wanted: torch.Tensor) -> bool:
        return not bool(((causal != wanted) & asked).any())

    if holds(expected) or (band is not None and holds(expected & band)):
        _check_past(visible[:, :, :past], real, window)
        return TokenMask(real, None, looks_ahead)
    begins = ~real | (causal.int().argmax(-1) == at)
    sequences = begins.cumsum(1) - 1
    expected = expected & (sequences[:, :, None] == sequences[:, None])
    if not past and (holds(expected) or (band is not None and holds(expected & band))):
        return TokenMask(real, sequences, looks_ahead)
    raise ValueError(
        _refusal("hides earlier tokens of a sequence from later ones", "padding, causal order and packing")
    )


def _check_past(past: torch.Tensor, real: torch.Tensor, window: int | None) -> None:
    """Refuse a mask that shows some new tokens, and not others, what a cache holds."""
    asked = real[:, :, None]
    seen, hidden = ((x & asked).any(1) for x in (past, ~past))
    if window is None and bool((seen & hidden).any()):
        raise ValueError(_refusal("hides what the cache holds from some of the tokens", "padding"))


def _refusal(does: str, can: str) -> str:
    return (
        f"this attention mask {does}, which a memory would show all the same; it can follow {can}. Pass a 2-D mask "
        "[B, T], and position_ids or cu_seqlens for packed rows"
    )
