"""Compares runs: training and held-out losses in one picture, where their time went, and what differs in their configs.

python -m experiments.compare_runs runs/a runs/b [--output=compare_runs.png]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from experiments import goodput
from experiments import workdir as workdirs
from experiments.curves import plot_smoothed, read_curves
from experiments.files import write_atomically

__all__ = ["compare_runs", "differences", "table", "time_rows"]

NAMES = ("loss", "heldout_loss")
_ABSENT = "(absent)"


def compare_runs(folders: Sequence[Path], output: Path) -> None:
    """Draws the losses of runs into `output`, and prints the last ones, shares of the time and the fields that differ.

    Args:
      folders: the work directories.
      output: the PNG file.

    Raises:
      ValueError: if there are fewer than two, one holds no run, or none has a loss yet.
    """
    if len(folders) < 2:
        raise ValueError("give at least two work directories: python -m experiments.compare_runs runs/a runs/b")
    names = _short_names(folders)
    configs = [workdirs.read_config(folder).to_dict() for folder in folders]
    curves = {name: read_curves(folder / "metrics.jsonl", NAMES) for name, folder in zip(names, folders)}
    _draw(output, curves)
    rows = [(name, *(_last(*found[each]) for each in NAMES)) for name, found in curves.items()]
    print(table([("run", *(f"last {name}" for name in NAMES)), *rows]))
    times = {name: goodput.read(folder) for name, folder in zip(names, folders)}
    if any(times.values()):
        print(table(time_rows(times)))
    rows = differences(configs)
    print(table([("field", *names), *rows]) if rows else "the configs are equal")
    print(f"curves in {output}")


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns (field, value in each config) for the fields that differ.

    >>> differences([{"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}])
    [('a.b', '1', '3')]
    """
    flat = [{name: repr(value) for name, value in workdirs.flattened(config).items()} for config in configs]
    rows = [(name, *(found.get(name, _ABSENT) for found in flat)) for name in sorted({n for f in flat for n in f})]
    return [row for row in rows if len(set(row[1:])) > 1]


def time_rows(times: Mapping[str, Mapping[str, float] | None]) -> list[tuple[str, ...]]:
    """Returns rows of text: the wall time of each run, and the share of each bucket of `goodput`; "-" if unknown.

    >>> for row in time_rows({"a": {name: 1.0 for name in goodput.BUCKETS}, "b": None})[:3]:
    ...     print(row)
    ('time', 'a', 'b')
    ('wall time', '7 s', '-')
    ('start-up', '14.3%', '-')
    """
    walls = [sum(each.values()) if each else 0.0 for each in times.values()]
    rows = [("time", *times), ("wall time", *(f"{wall:.0f} s" if wall else "-" for wall in walls))]
    for name, title in goodput.BUCKETS.items():
        shares = (f"{each[name] / wall:.1%}" if each and wall else "-" for each, wall in zip(times.values(), walls))
        rows.append((title, *shares))
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of text in columns.

    >>> print(table([("run", "loss"), ("a", "0.1")]))
    run  loss
    a    0.1
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _draw(output: Path, curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(NAMES)), NAMES, strict=True):
        lowest = math.inf
        for i, (run, found) in enumerate(curves.items()):
            steps, values = found[metric]
            finite = values[np.isfinite(values)]
            if not finite.size:
                continue
            plot_smoothed(axes, steps, values, color=f"C{i}", label=run)
            lowest = min(lowest, float(finite.min()))
        axes.set(xlabel="training step", ylabel=metric)
        axes.grid(alpha=0.3, which="both")
        if lowest < math.inf:
            axes.legend()
        if 0 < lowest < math.inf:
            axes.set_yscale("log")
    if not any(np.isfinite(values).any() for found in curves.values() for _, values in found.values()):
        raise ValueError(f"none of the runs has a loss yet: {', '.join(curves)}")
    write_atomically(output, lambda file: figure.savefig(file, format="png", dpi=110))


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Returns the last part of each path, or the paths if these are not different."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _last(steps: np.ndarray, values: np.ndarray) -> str:
    return f"{values[-1]:.4g} at {steps[-1]:.0f}" if len(values) else "-"


def main(argv: list[str]) -> None:
    """Reads the command line; a mistake ends in one line."""
    try:
        compare_runs([Path(each).expanduser() for each in argv[1:]], Path(flags.FLAGS.output).expanduser())
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    flags.DEFINE_string("output", "compare_runs.png", "The PNG file of the curves.")
    app.run(main)
