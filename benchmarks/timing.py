"""Times that can be compared: contenders take turns, medians count; and what machine and commit they were taken on."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SYNC = {"cpu": lambda: None, "cuda": torch.cuda.synchronize}


def interleaved(
    contenders: dict[Any, Callable[[], object]], repeats: int = 7, device: str = "cpu", seconds: float = 60.0,
    warm: int = 0,
) -> dict[Any, float]:  # fmt: skip
    """Median seconds per call of each contender.

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


def machine(device: str = "cpu") -> str:
    """One line: processor or GPU, threads, versions, commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return f"{processor(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit or 'unknown'}"


def processor(device: str = "cpu") -> str:
    """Name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_section(file: Path, title: str, text: str) -> None:
    """Put ``text`` under the heading ``## title`` of a Markdown file, in the place of what stood there."""
    old = file.read_text(encoding="utf-8") if file.exists() else "# Results\n"
    head, *sections = old.split("\n## ")
    kept = [s for s in sections if s.partition("\n")[0] != title]
    file.write_text("\n## ".join([head.rstrip() + "\n", *kept, f"{title}\n\n{text.strip()}\n"]), encoding="utf-8")
