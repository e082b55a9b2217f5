"""What the cards that people train on can do, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hardware:
    """One device.

    Args:
        title: as it is called.
        memory: bytes, all of them.
        teraflops: peak of dense matrix products in 1e12 operations a second, by the dtype they are computed in; a dtype
            that is missing is not computed on this device at a speed worth having.
        utilisation: share of that peak that training the base is assumed to reach, in (0, 1].
        memory_utilisation: share of the peak that the memories are assumed to reach in float32 and float64, in (0, 1].
    """

    title: str
    memory: int
    teraflops: Mapping[str, float]
    utilisation: float
    memory_utilisation: float

    @property
    def usable(self) -> int:
        """Bytes left for a run: a driver's context and the allocator's fragments take about a twelfth."""
        return int(self.memory * 11 / 12)

    def computes(self, dtype: torch.dtype) -> bool:
        """Whether matrix products in ``dtype`` are done at a speed worth having."""
        return dtype_name(dtype) in self.teraflops

    def seconds(self, operations: float, dtype: torch.dtype, of_memory: bool) -> float:
        """How long so many operations in ``dtype`` take."""
        share = self.memory_utilisation if of_memory else self.utilisation
        return operations / (self.teraflops[dtype_name(dtype)] * 1e12 * share)


def dtype_name(dtype: torch.dtype) -> str:
    """``dtype`` as run files spell it."""
    return str(dtype).removeprefix("torch.")


GIB = 2**30
_GPU_MEMORY = 0.2
"""Share of a GPU's peak that the memories reach: "Operators, NVIDIA H200" in benchmarks/RESULTS.md, 25 ms for 2 x 4,096
tokens of 8 query heads on 4 key heads of 2,048 features, forward and backward, of 67 TFLOP/s in float32 and in float64.
A test computes it again. No other GPU was measured."""
_CPU_MEMORY = 1.0
"""The same of the C++ kernels: "Wide keys" in benchmarks/RESULTS.md. They reach two thirds of the peak with chunks of
32 tokens, which need three fifths of the operations that are counted for a GPU's chunks of 128."""
# peaks: the makers' data sheets, dense and with float32 accumulation; the processor: two cores with AVX-512, measured.
# utilisation: assumed, not measured
HARDWARE: dict[str, Hardware] = {
    "t4": Hardware("T4 16 GB", 15 * GIB, {"float16": 65.0, "float32": 8.1, "float64": 0.25}, 0.25, _GPU_MEMORY),
    "rtx-4090": Hardware(
        "RTX 4090 24 GB",
        24 * GIB,
        {"bfloat16": 165.2, "float16": 165.2, "float32": 82.6, "float64": 1.29},
        0.35,
        _GPU_MEMORY,
    ),
    "80gb": Hardware(
        "A100 or H100 80 GB",
        80 * GIB,
        {"bfloat16": 312.0, "float16": 312.0, "float32": 19.5, "float64": 19.5},
        0.35,
        _GPU_MEMORY,
    ),
    "cpu": Hardware("2 CPU cores, 16 GB", 16 * GIB, {"float32": 0.185, "float64": 0.185}, 0.4, _CPU_MEMORY),
}


def check_hardware(name: str | None) -> None:
    """Raises ValueError where ``name`` is neither None nor a key of `HARDWARE`."""
    if name is not None and name not in HARDWARE:
        raise ValueError(f"unknown hardware {name!r}; valid are null, {', '.join(HARDWARE)}")
