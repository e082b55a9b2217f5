"""What the cards that people train on can do, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One device.

    Args:
        title: as it is called.
        memory: bytes, all of them.
        teraflops: peak of dense matrix products in 1e12 operations a second, by the dtype they are computed in; a dtype
            that is missing is not computed on this device at a speed worth having.
        utilisation: part of that peak that training is assumed to reach, in (0, 1]. Assumed, not measured.
    """

    title: str
    memory: int
    teraflops: Mapping[str, float]
    utilisation: float

    @property
    def usable(self) -> int:
        """Bytes left for a run: a driver's context and the allocator's fragments take about a twelfth."""
        return int(self.memory * 11 / 12)


GIB = 2**30
# peaks: the makers' data sheets, dense and with float32 accumulation; the processor: two cores with AVX-512, measured
HARDWARE: dict[str, Hardware] = {
    "t4": Hardware("T4 16 GB", 15 * GIB, {"float16": 65.0, "float32": 8.1}, 0.25),
    "rtx-4090": Hardware(
        "RTX 4090 24 GB", 24 * GIB, {"bfloat16": 165.2, "float16": 165.2, "float32": 82.6}, 0.35
    ),
    "80gb": Hardware("A100 or H100 80 GB", 80 * GIB, {"bfloat16": 312.0, "float16": 312.0, "float32": 19.5}, 0.35),
    "cpu": Hardware("2 CPU cores, 16 GB", 16 * GIB, {"float32": 0.185}, 0.4),
}  # fmt: skip


def check_hardware(name: str | None) -> None:
    """Raises ValueError where ``name`` is neither None nor a key of `HARDWARE`."""
    if name is not None and name not in HARDWARE:
        raise ValueError(f"unknown hardware {name!r}; valid are null, {', '.join(HARDWARE)}")
