"""Measures speed, memory and compilation against torch, diffusers and hand-written scans, in interleaved runs.

    python -m experiments.benchmark --output=runs/benchmark
    python -m experiments.benchmark --config=experiments/benchmarks/config.py:quick --config.sections=networks

Each contender is a process of its own, and the contenders of a comparison take turns: A B C, B C A, C A B, ... Outputs
of contenders that compute the same thing are compared first; if they differ, nothing is timed. The tables show the
median, smallest and largest time of each contender, and the median of the ratios within a round. Peers (torch with
diffusers, artifex) are optional and may be installed in another environment: --config.peer_python. Two files are
written into the output folder: benchmark.json with every time, and benchmark.md.

The fields of --config are listed in `experiments/benchmarks/config.py`; each section is a file in
`experiments/benchmarks/`.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import runs
from experiments.benchmarks import machine, report
from experiments.benchmarks.measure import Settings, count_ticks, measure
from experiments.benchmarks.work import Comparison
from experiments.files import write_text

__all__ = ["SECTIONS", "main", "run", "section_comparisons", "section_names", "write"]

SECTIONS = ("networks", "samplers", "scaling", "data", "scans", "recompilations", "memory", "startup")


def run(config: ConfigDict, output: Path) -> dict[str, Any]:
    """Returns the contents of benchmark.json; both files are written again after every comparison.

    Raises:
      ValueError: if config.sections names an unknown section, or rounds is not positive.
    """
    if config.rounds < 1:
        raise ValueError(f"config.rounds must be at least 1; got {config.rounds}")
    settings = Settings(
        config.rounds, config.turn_seconds, config.tolerance, config.timeout_s, peer_python=config.peer_python
    )
    plan = [(name, each) for name in section_names(config.sections) for each in section_comparisons(name, config)]
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": {},
        "config": config.to_dict(),
        "sections": {},
    }
    total = sum(count_ticks(comparison, settings) for _, comparison in plan)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, unit="turn", mininterval=0.5) as bar:
        done = 0
        for name, comparison in plan:
            bar.set_description(f"{name}: {comparison.title}")
            load = machine.load_average()
            found = measure(comparison, settings, Path(folder), bar.update)
            done += count_ticks(comparison, settings)
            bar.update(done - bar.n)
            results["sections"].setdefault(name, []).append(
                {**found, "timed": comparison.timed, "rate": comparison.rate, "load_before": load}
            )
            for entry in found["contenders"].values():
                results["versions"] = entry.pop("versions", {}) | results["versions"]  # our versions take precedence
            write(results, output)
    return results


def section_names(sections: str) -> list[str]:
    """Returns the names in "a,b".

    Raises:
      ValueError: if one of them is not a section.

    >>> section_names("networks")
    ['networks']
    """
    names = [name.strip() for name in sections.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise ValueError(f"config.sections must be some of {','.join(SECTIONS)}; got {sections!r}")
    return names


def section_comparisons(name: str, config: ConfigDict) -> list[Comparison]:
    """Returns the comparisons of a section."""
    return list(importlib.import_module(f"experiments.benchmarks.{name}").comparisons(config))


def write(results: dict[str, Any], output: Path) -> None:
    """Writes benchmark.json and benchmark.md."""
    write_text(output / "benchmark.json", json.dumps(results, indent=1, default=list) + "\n")
    write_text(output / "benchmark.md", report.render(results))


def main(config: ConfigDict) -> None:
    """Measures and prints the report."""
    print(report.render(run(config, flags.FLAGS.output)))


if __name__ == "__main__":
    flags.DEFINE_string(
        "config",
        None,
        "What to measure: FILE.py or FILE.py:variant (full, quick, tiny). Default: experiments/benchmarks/config.py.",
    )
    runs.define_path("output", "runs/benchmark", "Folder for benchmark.json and benchmark.md.")
    runs.run_with_config(main, Path(__file__).parent / "benchmarks" / "config.py")
