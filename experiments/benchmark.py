"""Measures speed, memory and compilation against torch, diffusers and scans written by hand, in interleaved runs.

    python -m experiments.benchmark --output=runs/benchmark
    python -m experiments.benchmark --config=experiments/benchmarks/config.py:quick --config.sections=networks

Every contender is a process of its own that does its work when it is asked: A B C, B C A, C A B, ... Tables say
medians, the smallest and the largest time, and the median of the ratios within a round. Contenders that compute the
same are compared first; where their outputs differ the row is refused. Peers (torch with diffusers, artifex) are
optional, and may live in another environment: --config.peer_python. The folder gets benchmark.json with every time,
and benchmark.md.

`experiments/benchmarks/config.py` has the fields, `experiments/benchmarks/` a file for each section.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments.benchmarks import machine, report
from experiments.benchmarks.rows import Settings, measure, ticks
from experiments.benchmarks.work import Row
from experiments.files import write_text

SECTIONS = ("networks", "samplers", "scaling", "data", "scans", "recompilations", "memory", "startup")


def run(config: ConfigDict, output: Path) -> dict[str, Any]:
    """Returns what benchmark.json says; both files are written again after every row.

    Raises:
      ValueError: if config.sections names a section that is not there, or rounds is not positive.
    """
    if config.rounds < 1:
        raise ValueError(f"config.rounds must be at least 1; got {config.rounds}")
    settings = Settings(
        config.rounds, config.turn_seconds, config.tolerance, config.timeout_s, peer_python=config.peer_python
    )
    plan = [(name, row) for name in section_names(config.sections) for row in section_rows(name, config)]
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": {},
        "config": config.to_dict(),
        "sections": {},
    }
    total = sum(ticks(row, settings) for _, row in plan)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, unit="turn", mininterval=0.5) as bar:
        done = 0
        for name, row in plan:
            bar.set_description(f"{name}: {row.title}")
            load = machine.busy()
            found = measure(row, settings, Path(folder), bar.update)
            done += ticks(row, settings)
            bar.update(done - bar.n)
            results["sections"].setdefault(name, []).append(
                {**found, "timed": row.timed, "rate": row.rate, "load_before": load}
            )
            for entry in found["contenders"].values():
                results["versions"] = entry.pop("versions", {}) | results["versions"]  # ours, where peers have others
            write(results, output)
    return results


def section_names(sections: str) -> list[str]:
    """Returns the sections of "a,b".

    Raises:
      ValueError: if there is no such section.

    >>> section_names("networks")
    ['networks']
    """
    names = [name.strip() for name in sections.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise ValueError(f"config.sections must be some of {','.join(SECTIONS)}; got {sections!r}")
    return names


def section_rows(name: str, config: ConfigDict) -> list[Row]:
    """Returns the rows of a section."""
    return list(importlib.import_module(f"experiments.benchmarks.{name}").rows(config))


def write(results: dict[str, Any], output: Path) -> None:
    """Writes benchmark.json and benchmark.md."""
    write_text(output / "benchmark.json", json.dumps(results, indent=1, default=list) + "\n")
    write_text(output / "benchmark.md", report.render(results))


def main(_: list[str]) -> None:
    """Measures and prints."""
    try:
        results = run(flags.FLAGS.config, Path(flags.FLAGS.output))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(report.render(results))


if __name__ == "__main__":
    default = str(Path(__file__).parent / "benchmarks" / "config.py")
    config_flags.DEFINE_config_file("config", default, "What to measure, FILE.py or FILE.py:variant.", lock_config=True)
    flags.DEFINE_string("output", "runs/benchmark", "Folder for benchmark.json and benchmark.md.")
    app.run(main)
