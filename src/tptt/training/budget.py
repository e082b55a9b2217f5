"""What a budget of keys and values may be."""

from __future__ import annotations


def check_kv_budget(value: object) -> float:
    """``value`` as a share of the base's keys and values.

    Raises:
        ValueError: it is no number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ValueError(
            "kv_budget must be a number in [0, 1), the share of the base's keys and values that may remain (1 is the base "
            f"itself), got {value!r}"
        )
    return float(value)
