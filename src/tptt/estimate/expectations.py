"""What a training of N tokens brings, read off the curves that benchmarks/conversion measured. It interpolates and
never invents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

MEASURES = ("recall_trained", "recall_2x", "recall_4x", "recall_unseen", "perplexity_ratio")
"""What a point of the curves holds beside ``tokens``, each as mean and standard deviation over seeds: recall beyond the
window in formats trained on, at once, twice and four times the training length; in a format never trained; perplexity
over the base's."""
Measure = tuple[float, float | None]
"""Mean and standard deviation; one run has none."""
_FAR = 2.0  # times as large or small: from here on a run is another than the measured one
FAILED = (
    "from small bases this extrapolation failed on the only real pretrained base that was tried: "
    "SmolLM2-135M-Instruct recalled 0 of 5 needles after 65,536 tokens, where the curve of the embedded base says 0.92"
)
"""What became of expectations that were read off small bases, trained by this project, for a real one."""


class NoCurvesError(ValueError):
    """There is nothing measured to plan by."""


@dataclass(frozen=True)
class Curves:
    """Measured points of one base, ascending in tokens.

    Args:
        base: name of the base; ``parameters`` its number.
        length, window: tokens of a training row, and of the softmax window.
        points: (tokens, {measure: (mean, standard deviation)}); None for the deviation of one run.
        machine, commit: where and with what it was measured.
        real: the base was pretrained by others, not trained by this project to measure on; in the file
            ``base.real``, which may be left out.
    """

    base: str
    parameters: int
    length: int
    window: int
    points: tuple[tuple[int, Mapping[str, Measure]], ...]
    machine: str = ""
    commit: str = ""
    real: bool = False

    @classmethod
    def load(cls, path: str | Path) -> Curves:
        """Read a file of `benchmarks.conversion`.

        Raises:
            NoCurvesError: there is no such file, or it holds no point.
            ValueError: the file is of another form; the message says what is missing.
        """
        path = Path(path)
        if not path.is_file():
            raise NoCurvesError(f"there are no measured curves at {path}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            points = sorted((int(p["tokens"]), _measures(p)) for p in found["points"])
            curves = cls(
                found["base"]["name"],
                int(found["base"]["parameters"]),
                int(found["length"]),
                int(found["window"]),
                tuple(points),
                found.get("machine", ""),
                found.get("commit", ""),
                _flag(found["base"].get("real", False)),
            )
        except KeyError as error:
            raise ValueError(f"{path} has no {error}: it is no file of measured curves") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no file of measured curves: {error}") from error
        if not curves.points:
            raise NoCurvesError(f"{path} holds no measured point")
        return curves

    @classmethod
    def nearest(cls, files: Iterable[str | Path], parameters: int) -> Curves:
        """Of the curves in ``files`` those of the base whose number of parameters comes nearest to ``parameters``, by
        ratio. A real base goes before a small one, unless the small one is of that size itself: what small bases do
        says little of others.

        Raises:
            NoCurvesError: there is no file, or one that is missing or empty.
            ValueError: as `load`.
        """
        found = [cls.load(path) for path in files]
        if not found:
            raise NoCurvesError("no measured curves are shipped with this installation")
        trusted = [curves for curves in found if curves.real or not _far(parameters, curves.parameters)]
        return min(trusted or found, key=lambda curves: abs(math.log(curves.parameters / parameters)))

    def at(self, tokens: int) -> dict[str, Measure]:
        """{measure: (mean, standard deviation)} after ``tokens`` tokens. A measured number of tokens has its own
        values. Between two of them the values are linear in the logarithm of the tokens, for the measures that both
        have. Outside of all, they are those of the nearest."""
        counts = [n for n, _ in self.points]
        nearest = min(max(tokens, counts[0]), counts[-1])
        if nearest in counts:
            return dict(self.points[counts.index(nearest)][1])
        above = next(i for i, n in enumerate(counts) if n > tokens)
        (n0, low), (n1, high) = self.points[above - 1], self.points[above]
        part = math.log(tokens / n0) / math.log(n1 / n0)
        mixed = {}
        for name in low.keys() & high.keys():
            (m0, s0), (m1, s1) = low[name], high[name]
            spread = None if s0 is None or s1 is None else (1 - part) * s0 + part * s1
            mixed[name] = ((1 - part) * m0 + part * m1, spread)
        return mixed


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"base.real must be true or false, got {value!r}")
    return value


def _measures(point: Mapping[str, Any]) -> dict[str, Measure]:
    found = {name: point[name] for name in MEASURES if point.get(name) is not None}
    return {name: (float(mean), None if spread is None else float(spread)) for name, (mean, spread) in found.items()}


@dataclass(frozen=True)
class Expectation:
    """What to expect of a run.

    Args:
        curves: that it was read off.
        values: {measure: (mean, standard deviation)} of the measured base after the run's tokens.
        reasons: in what this run differs from those measured; empty: in nothing.
        other_base: the run's base is much larger or smaller than the measured one.
    """

    curves: Curves
    values: dict[str, Measure]
    reasons: tuple[str, ...] = ()
    other_base: bool = False

    @property
    def extrapolates(self) -> bool:
        """Whether the values were measured on something else than this run."""
        return bool(self.reasons)

    @property
    def failed_before(self) -> bool:
        """Whether it is read off a small base for one that is another: see `FAILED`."""
        return self.other_base and not self.curves.real


def expect(
    curves: Curves,
    tokens: int,
    parameters: int,
    length: int,
    window: int | None,
    changed: Mapping[str, Any] = MappingProxyType({}),
) -> Expectation:
    """What the measured curves say of a run.

    Args:
        curves: measured.
        tokens: number of tokens that the run trains on.
        parameters: number of its base's parameters.
        length: tokens of its rows.
        window: W in tokens; None is no window.
        changed: {key: value} of the recipe where it is not the default's.
    """
    least, most = curves.points[0][0], curves.points[-1][0]
    reasons = []
    if tokens > most:
        reasons.append(f"{tokens:,} tokens, measured were {most:,} at most: the values of the last point are shown")
    elif tokens < least:
        reasons.append(f"{tokens:,} tokens, measured were {least:,} at least: the values of the first point are shown")
    if other_base := _far(parameters, curves.parameters):
        reasons.append(f"a base of {parameters:,} parameters, the measured one has {curves.parameters:,}")
    if _far(length, curves.length):
        reasons.append(f"rows of {length} tokens, the measured ones have {curves.length}")
    if window is None:
        reasons.append(f"no softmax window, the measured one has {curves.window} tokens")
    elif _far(window / length, curves.window / curves.length):
        reasons.append(
            f"a window of 1/{length / window:.3g} of a row, the measured one has 1/{curves.length / curves.window:.3g}"
        )
    if changed:
        reasons.append(f"another recipe than the measured one, {', '.join(f'{k}: {v}' for k, v in changed.items())}")
    return Expectation(curves, curves.at(tokens), tuple(reasons), other_base)


def _far(one: float, other: float) -> bool:
    return max(one / other, other / one) > _FAR
