"""Measures a row: outputs compared first, then turns in rotated order, or facts one after another."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import stats
from experiments.benchmarks.processes import Missing, Worker, WorkerError, file_name, interpreters
from experiments.benchmarks.work import Contender, Row


class Settings(NamedTuple):
    """How rows are measured.

    Attributes:
      rounds: turns of each contender.
      turn_seconds: what quick work is repeated to fill in a turn; slow work is done once.
      tolerance: relative difference of outputs above which a row is refused.
      timeout_s: longest wait for an answer.
      peer_python: interpreters of peers, commas between, each peer's the first that has its package; "" is this one.
    """

    rounds: int
    turn_seconds: float = 0.2
    tolerance: float = 1e-3
    timeout_s: float = 900.0
    peer_python: str = ""


def measure(row: Row, settings: Settings, folder: Path, tick: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Returns what the JSON file says of a row.

    `folder` is where the processes work, and keeps what `prepare` wrote for other rows; `tick` is called
    `ticks(row, settings)` times.

    status is "ok", "failed" where the first contender did not run, or "invalid" where outputs differ: then nothing is
    timed. A contender's own status is "ok", "not installed" or "failed", and says why.
    """
    found: dict[str, Any] = {"title": row.title, "status": "ok", "contenders": {}, "ratios": {}, "differences": {}}
    with contextlib.ExitStack() as stack:
        if row.prepare is not None:
            try:
                with _start(row.prepare, folder, settings) as worker:
                    worker.finish()
            except (Missing, WorkerError) as error:
                return found | {"status": "failed", "why": f"{row.prepare.name}: {error}"}
        workers: dict[str, Worker] = {}
        for contender in row.contenders:
            try:
                worker = stack.enter_context(_start(contender, folder, settings, row.timed))
                entry: dict[str, Any] = {"status": "ok", **worker.started}
                if row.timed:
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
        first = row.contenders[0].name
        if found["contenders"][first]["status"] != "ok":
            return found | {"status": "failed", "why": found["contenders"][first].get("why", "")}
        if row.timed:
            found |= _compare(found["contenders"], first, row, settings.tolerance)
            if found["status"] == "ok":
                _time(found, workers, settings, tick)
        for entry in found["contenders"].values():
            entry.pop("output", None)
    return found


def ticks(row: Row, settings: Settings) -> int:
    """Returns how often `measure` ticks if nothing goes wrong: at each start and each round."""
    return len(row.contenders) + (settings.rounds if row.timed else 0)


def _start(contender: Contender, folder: Path, settings: Settings, keep: bool = False) -> Worker:
    output = str(folder / f"{file_name(contender.name)}.npy") if keep else ""
    missing = Missing()
    for python in interpreters(contender, settings.peer_python):
        try:
            return Worker(contender, folder, python, settings.timeout_s, output)
        except Missing as error:
            missing = error
    raise missing


def _compare(entries: dict[str, Any], first: str, row: Row, tolerance: float) -> dict[str, Any]:
    """Returns the relative difference of each output to the first one's, and the status that they make."""
    outputs = {name: np.load(entry["output"]) for name, entry in entries.items() if "output" in entry}
    differences = {
        name: stats.relative_difference(output, outputs[first])
        for name, output in outputs.items()
        if name != first and first in outputs and (row.same is None or name in row.same)
    }
    wrong = {name: value for name, value in differences.items() if not value <= tolerance}
    said = {
        name: value if math.isfinite(value) else None for name, value in differences.items()
    }  # JSON has no infinity
    if not wrong:
        return {"differences": said}
    why = ", ".join(f"the output of {name} differs from that of {first} by {wrong[name]:.2g}" for name in wrong)
    return {"differences": said, "status": "invalid", "why": why}


def _time(found: dict[str, Any], workers: dict[str, Worker], settings: Settings, tick: Callable[[], Any]) -> None:
    """Asks the workers in turn; adds seconds, memory, versions, facts and ratios."""
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
