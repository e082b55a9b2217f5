"""Seconds of a decoding step, of a chunk of a prompt, and of a million tokens."""

from __future__ import annotations

import cProfile
import pstats
import resource
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from benchmarks.timing import interleaved
from tptt.evaluation import measured_size
from tptt.inference import Session

from .models import BASES, CHUNK, WINDOWS, Forward, converted, random_ids, without_memory

_LARGE = 8192  # tokens: a base's cache of more drives all else out of the processor's caches
Seconds = dict[tuple[str, int], float]  # (model, context)


def decode_seconds(models: dict, held: dict) -> Seconds:
    """Seconds of one token at each context.

    The models take turns at each context, so that all find the processor's caches alike; a base with a large cache is
    timed by itself, because whoever comes after its gigabyte finds them cold.
    """
    token = torch.tensor([[5]])
    steps = {}
    for name, tokens in sorted(held, key=lambda key: key[1]):
        steps[name, tokens] = Forward(name, models[name], held[name, tokens], token)
    large = {key: run for key, run in steps.items() if key[0] in BASES and key[1] > _LARGE}
    with torch.no_grad():
        small = {key: run for key, run in steps.items() if key not in large}
        found = interleaved(small, repeats=25, seconds=40, warm=1)
        for name in BASES:
            alone = {key: run for key, run in large.items() if key[0] == name}
            found |= interleaved(alone, repeats=9, seconds=30, warm=1) if alone else {}
    return found


def prefill_seconds(models: dict, held: dict) -> Seconds:
    """Seconds of a chunk of CHUNK tokens behind each context."""
    ids = random_ids(CHUNK)[None]
    chunks = {key: Forward(key[0], models[key[0]], cache, ids) for key, cache in held.items()}
    with torch.no_grad():
        return interleaved(chunks, repeats=7, seconds=30, warm=1)


def step_profile(models: dict, held: dict, context: int) -> dict[str, tuple[float, int]]:
    """Seconds and Python calls of one whole step after ``context`` tokens, also of a window without its memory."""
    token, steps = torch.tensor([[5]]), {}
    for name, model in models.items():
        steps[name] = Forward(name, model, held[name, context], token)
    for window in WINDOWS[:1]:
        model = without_memory(models, window)
        cache = DynamicCache(config=model.config)
        name = f"{converted(window)} without its memory"
        with torch.no_grad():
            for piece in random_ids(context)[None].split(CHUNK, 1):
                Forward(name, model, cache, piece)()
        steps[name] = Forward(name, model, cache, token)
    with torch.no_grad():
        seconds = interleaved(steps, repeats=25, seconds=30, warm=1)
        return {name: (seconds[name], _calls(run)) for name, run in steps.items()}


def _calls(run: Forward) -> int:
    profile = cProfile.Profile()
    profile.runcall(run)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


@dataclass
class Reading:
    """What `Session.read` reported while it read.

    Args:
        tokens, seconds: read so far and taken so far, after each chunk.
        bytes_start, bytes_end: that the cache held.
        peak_growth: bytes by which the process's peak memory grew from the first tenth to the end.
    """

    tokens: list[int]
    seconds: list[float]
    bytes_start: int
    bytes_end: int
    peak_growth: int

    def speeds(self) -> list[tuple[int, float]]:
        """(tokens read, tokens per second) for each hundredth."""
        at = sorted({*(len(self.tokens) * i // 100 for i in range(100)), len(self.tokens) - 1})
        return [
            (self.tokens[b], (self.tokens[b] - self.tokens[a]) / (self.seconds[b] - self.seconds[a]))
            for a, b in zip(at, at[1:], strict=False)
        ]

    def tenth(self, i: int) -> float:
        """Median tokens per second of the i-th tenth; -1 is the last."""
        speeds = [s for _, s in self.speeds()]
        size = max(1, len(speeds) // 10)
        part = sorted(speeds[i * size : (i + 1) * size] if i >= 0 else speeds[-size:])
        return part[len(part) // 2]


def read_on(model, tokens: int) -> Reading:
    """Read ``tokens`` random tokens into a session of ``model``."""
    done: list[int] = []
    seconds: list[float] = []
    peaks: list[int] = []

    def note(n: int, s: float) -> None:
        done.append(n)
        seconds.append(s)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    session = Session(model, chunk_size=CHUNK).read(random_ids(4 * CHUNK))
    start = measured_size(session.cache).bytes
    session.read((random_ids(CHUNK) for _ in range(tokens // CHUNK)), note)
    growth = peaks[-1] - peaks[len(peaks) // 10]
    return Reading(done, seconds, start, measured_size(session.cache).bytes, growth)
