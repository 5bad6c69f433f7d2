"""Statistics of interleaved runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["ratio", "relative_difference", "summary", "turns"]


def turns(count: int, round_number: int) -> list[int]:
    """Returns the order of contenders in a round: rotated by one from round to round.

    >>> [turns(3, k) for k in range(3)]
    [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    return [(i + round_number) % count for i in range(count)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Returns median, min and max.

    >>> summary([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}


def ratio(ours: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Returns the summary of the ratios per round; a slow moment of the machine slows both and cancels.

    >>> ratio([1.0, 2.0, 6.0], [2.0, 4.0, 2.0])["median"]
    0.5
    """
    return summary([a / b for a, b in zip(ours, other, strict=True)])


def relative_difference(a: Any, b: Any) -> float:
    """Returns max |a - b| / max |b|; infinite if the shapes differ or an entry is not finite.

    >>> relative_difference([1.0, 4.0], [2.0, 4.0])
    0.25
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    largest = float(np.max(np.abs(b), initial=0.0))
    difference = float(np.max(np.abs(a - b), initial=0.0))
    return difference / largest if largest else (float("inf") if difference else 0.0)
