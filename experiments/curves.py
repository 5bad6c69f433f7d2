"""Training curves: metrics read from a log, smoothed and drawn."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.files import write_atomically
from experiments.metric_log import read

__all__ = ["Curve", "plot_smoothed", "read_curves", "running_mean", "save_curves"]

Curve = tuple[np.ndarray, np.ndarray]


def save_curves(
    path: str | os.PathLike[str],
    metrics: str | os.PathLike[str] | Mapping[str, Any],
    names: Sequence[str] = ("loss",),
    *,
    smoothing: float | None = None,
    title: str = "Training",
) -> None:
    """Writes a plot of metrics over training steps: faint raw values below their running mean.

    The vertical axis is logarithmic if all values are positive. A NaN or infinite value leaves a gap.

    Args:
      path: the PNG file.
      metrics: a file of JSON lines such as `{"step": 100, "loss": 0.25}`, or a mapping from names to values or to
        pairs (steps, values).
      names: the metrics to draw; those without values are left out.
      smoothing: decay of the running mean per value, in [0, 1). None averages over about a fiftieth of the curve;
        a curve of at most 50 values is not smoothed.
      title: title of the plot.

    Raises:
      ValueError: if none of `names` has a value.
    """
    if smoothing is not None and not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing must lie in [0, 1); got {smoothing}")
    if isinstance(metrics, Mapping):
        found = {name: _as_curve(metrics[name]) for name in names if name in metrics}
    else:
        found = read_curves(metrics, names)
    curves = {name: curve for name, curve in found.items() if len(curve[0])}
    if not curves:
        raise ValueError(f"no values of {', '.join(names)} to draw")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (name, (steps, values)) in enumerate(curves.items()):
        plot_smoothed(axes, steps, values, color=f"C{i}", label=name, smoothing=smoothing)
    finite = np.concatenate([values[np.isfinite(values)] for _, values in curves.values()])
    axes.set(xlabel="training step", ylabel=" / ".join(curves), title=title)
    if finite.size and finite.min() > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def plot_smoothed(
    axes: Any, steps: np.ndarray, values: np.ndarray, *, color: str, label: str, smoothing: float | None = None
) -> None:
    """Draws faint raw values and their running mean; smoothing: as for `save_curves`."""
    decay = 1.0 - 1.0 / max(1.0, len(values) / 50) if smoothing is None else smoothing
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, running_mean(values, decay), color=color, linewidth=1.8, label=label)


def read_curves(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Curve]:
    """Returns {name: (steps, values)} from a file of JSON lines that each have a `step`.

    A step that occurs twice (in a run resumed from an earlier checkpoint) keeps its last value. Damaged lines are left
    out, see `metric_log.read`.
    """
    curves: dict[str, dict[float, float]] = {name: {} for name in names}
    for entry in read(path):
        for name in set(names) & set(entry):
            curves[name][float(entry["step"])] = math.nan if entry[name] is None else float(entry[name])
    return {name: _as_curve((sorted(points), [points[s] for s in sorted(points)])) for name, points in curves.items()}


def running_mean(values: Any, decay: float) -> np.ndarray:
    """Returns the exponentially weighted mean of the values so far, sum_j d^(i-j) v_j / sum_j d^(i-j), j <= i.

    NaN and infinite values are ignored.

    >>> running_mean([1.0, 3.0], 0.5).round(3).tolist()
    [1.0, 2.333]
    """
    values = np.asarray(values, np.float64)
    means = np.full(len(values), np.nan)
    total = weight = 0.0
    for i, value in enumerate(values):
        total, weight = decay * total, decay * weight
        if np.isfinite(value):
            total, weight = total + value, weight + 1.0
        if weight > 0:
            means[i] = total / weight
    return means


def _as_curve(curve: Any) -> Curve:
    paired = isinstance(curve, tuple) and len(curve) == 2
    values = np.asarray(curve[1] if paired else curve, np.float64)
    steps = np.asarray(curve[0], np.float64) if paired else np.arange(len(values), dtype=np.float64)
    if values.ndim != 1 or steps.shape != values.shape:
        raise ValueError(f"a curve needs one step for each value; got {steps.shape} and {values.shape}")
    return steps, values
