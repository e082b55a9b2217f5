"""Which tokens of a batch count in a loss.

Legend: B rows, T tokens of this call, S tokens of the row so far, those of this call included.
"""

from __future__ import annotations

import torch

from tptt.data import IGNORE


def target_mask(labels: torch.Tensor) -> torch.Tensor:
    """Whether each token but the first of a row is to be predicted, [B, T - 1] bool, for ``labels`` [B, T]."""
    return labels[:, 1:] != IGNORE


def real_tokens(attention_mask: torch.Tensor | None, batch: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Whether each token of the rows so far is no padding, [B, S] bool.

    Args:
        attention_mask: [B, S], as Hugging Face models take it. None, or a mask of another shape (packed rows): every
            token is real.
        batch, tokens: B and S.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.ones(batch, tokens, dtype=torch.bool, device=device)
    return attention_mask.bool()


def beyond_window(real: torch.Tensor, window: int) -> torch.Tensor:
    """Whether each token has more than ``window`` real tokens up to itself, so that a window hides something from it,
    [B, S] bool for ``real`` [B, S]."""
    return real & (real.cumsum(1) > window)
