"""Measures a comparison: outputs are compared first, then contenders take turns; or each reports its facts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import stats
from experiments.benchmarks.processes import Missing, Worker, WorkerError, file_name, interpreters
from experiments.benchmarks.work import Comparison, Contender

__all__ = ["Settings", "count_ticks", "measure"]


class Settings(NamedTuple):
    """Settings of a measurement.

    Attributes:
      rounds: number of turns per contender.
      turn_seconds: work that is faster than this is repeated to fill a turn.
      tolerance: largest relative difference of outputs that may be compared.
      timeout_s: longest wait for an answer, in seconds.
      peer_python: comma-separated interpreters; a peer runs under the first that has its package; "" is ours.
    """

    rounds: int
    turn_seconds: float = 0.2
    tolerance: float = 1e-3
    timeout_s: float = 900.0
    peer_python: str = ""


def measure(
    comparison: Comparison, settings: Settings, folder: Path, tick: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Returns the JSON entry of a comparison.

    Its `status` is "ok", "failed" if the first contender did not run, or "invalid" if outputs differ, in which case
    nothing is timed. The status of a contender is "ok", "not installed" or "failed"; `why` holds the reason.

    Args:
      comparison: the contenders.
      settings: the settings.
      folder: working directory of the processes; files written by `prepare` stay there for later comparisons.
      tick: called `count_ticks(comparison, settings)` times, for a progress bar.
    """
    found: dict[str, Any] = {
        "title": comparison.title,
        "status": "ok",
        "contenders": {},
        "ratios": {},
        "differences": {},
    }
    with contextlib.ExitStack() as stack:
        if comparison.prepare is not None:
            try:
                with _start(comparison.prepare, folder, settings) as worker:
                    worker.finish()
            except (Missing, WorkerError) as error:
                return found | {"status": "failed", "why": f"{comparison.prepare.name}: {error}"}
        workers: dict[str, Worker] = {}
        for contender in comparison.contenders:
            try:
                worker = stack.enter_context(_start(contender, folder, settings, comparison.timed))
                entry: dict[str, Any] = {"status": "ok", **worker.started}
                if comparison.timed:
                    workers[contender.name] = worker
                else:
                    entry |= worker.finish()
                    worker.close()
            except Missing as error:
                entry = {"status": "not installed", "why": str(error)}
            except WorkerError as error:
                entry = {"status": "failed", "why": str(error)}
            found["contenders"][contender.name] = entry
            tick()
        first = comparison.contenders[0].name
        if found["contenders"][first]["status"] != "ok":
            return found | {"status": "failed", "why": found["contenders"][first].get("why", "")}
        if comparison.timed:
            found |= _compare(found["contenders"], first, comparison, settings.tolerance)
            if found["status"] == "ok":
                _time(found, workers, settings, tick)
        for entry in found["contenders"].values():
            entry.pop("output", None)
    return found


def count_ticks(comparison: Comparison, settings: Settings) -> int:
    """Returns the number of calls of `tick` by `measure` without failures: one per contender and one per round."""
    return len(comparison.contenders) + (settings.rounds if comparison.timed else 0)


def _start(contender: Contender, folder: Path, settings: Settings, keep: bool = False) -> Worker:
    output = str(folder / f"{file_name(contender.name)}.npy") if keep else ""
    missing = Missing()
    for python in interpreters(contender, settings.peer_python):
        try:
            return Worker(contender, folder, python, settings.timeout_s, output)
        except Missing as error:
            missing = error
    raise missing


def _compare(entries: dict[str, Any], first: str, comparison: Comparison, tolerance: float) -> dict[str, Any]:
    """Returns the relative difference of each output to that of the first contender, and the status."""
    outputs = {name: np.load(entry["output"]) for name, entry in entries.items() if "output" in entry}
    differences = {
        name: stats.relative_difference(output, outputs[first])
        for name, output in outputs.items()
        if name != first and first in outputs and (comparison.same is None or name in comparison.same)
    }
    wrong = {name: value for name, value in differences.items() if not value <= tolerance}
    finite = {name: value if math.isfinite(value) else None for name, value in differences.items()}  # for JSON
    if not wrong:
        return {"differences": finite}
    why = ", ".join(f"the output of {name} differs from that of {first} by {wrong[name]:.2g}" for name in wrong)
    return {"differences": finite, "status": "invalid", "why": why}


def _time(found: dict[str, Any], workers: dict[str, Worker], settings: Settings, tick: Callable[[], Any]) -> None:
    """Runs the workers in turn and adds seconds, memory, versions, facts and ratios to `found`."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    calls = {
        name: min(max(math.ceil(settings.turn_seconds / max(worker.started["run_s"], 1e-6)), 1), 1000)
        for name, worker in workers.items()
    }
    for number in range(settings.rounds):
        alive = list(seconds)
        for i in stats.turns(len(alive), number):
            try:
                seconds[alive[i]].append(workers[alive[i]].run(calls[alive[i]]))
            except WorkerError as error:
                found["contenders"][alive[i]] |= {"status": "failed", "why": str(error)}
                del seconds[alive[i]]
        tick()
    entries, first = found["contenders"], next(iter(found["contenders"]))
    for name, values in seconds.items():
        try:
            entries[name] |= {**stats.summary(values), "seconds": values, **workers[name].finish()}
        except WorkerError as error:
            entries[name] |= {"status": "failed", "why": str(error)}
    if entries[first]["status"] != "ok":
        found |= {"status": "failed", "why": entries[first]["why"]}
        return
    for name, values in seconds.items():
        if name != first and entries[name]["status"] == "ok":
            found["ratios"][name] = stats.ratio(seconds[first], values)
