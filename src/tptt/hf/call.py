"""What belongs to a call that is running, of which every thread may have one: a server's threads share one model, and
the replicas of nn.DataParallel share what is no parameter."""

from __future__ import annotations

import threading
from typing import Any

import torch


class Running(threading.local):
    """Of one attention module, and of the thread that asks."""

    call: dict[str, Any] | None = None  # None: no memory is to be mixed in
    packed: bool = False  # the call has packed rows
    told: dict[str, torch.Tensor | None] | None = None  # what was passed down to the layer; None: nothing, ever

    def __reduce__(self):
        return Running, ()  # a copied or pickled model begins anew
