"""Times that can be compared: contenders take turns, medians count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SYNC = {"cpu": lambda: None, "cuda": torch.cuda.synchronize}


def interleaved(
    contenders: dict[Any, Callable[[], object]],
    repeats: int = 7,
    device: str = "cpu",
    seconds: float = 60.0,
    warm: int = 0,
) -> dict[Any, float]:
    """Median seconds of a call of each contender.

    Every round runs each contender once, after two calls to warm up. A contender that has used ``seconds`` leaves the
    later rounds (it has had one timed call at least). Calls under 10 ms are timed in batches. ``warm`` calls go before
    each timing: for contenders whose weights the one before has driven out of the processor's cache.
    """
    sync, times = SYNC[device], {name: [] for name in contenders}

    def timed(call: Callable[[], object], count: int) -> float:
        for _ in range(warm):
            call()
        sync()
        start = time.perf_counter()
        for _ in range(count):
            call()
        sync()
        return (time.perf_counter() - start) / count

    counts = {}
    for name, call in contenders.items():
        timed(call, 1)
        counts[name] = max(1, min(1000, int(0.02 / timed(call, 1))))
    for _ in range(repeats):
        for name, call in contenders.items():
            if not times[name] or sum(times[name]) * counts[name] < seconds:
                times[name].append(timed(call, counts[name]))
    return {name: statistics.median(values) for name, values in times.items()}
