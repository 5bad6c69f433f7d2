"""A contender's process: told in lines of JSON what to do, it answers in lines of JSON.

    {"target", "kwargs", "package", "output": a file}  ->  {"setup_s", "compile_s", "run_s", "peak_mb", "output"}
    {"calls": 3}                                       ->  {"seconds": of one unit of work}
    {}                                                 ->  {"facts", "run_peak_mb", "versions"}

run_peak_mb is the largest memory after the first two runs: setting up and compiling may have needed more (peak_mb).

Before the calls that are timed one is not: while the others had their turns, the memory that a step or a sampler takes
anew went back to the system. So the times are those of steps in a row.

What it prints goes to standard error. Between two lines it sleeps, so that thread pools do not fight. This file needs
the standard library alone, because it also runs where JAX is not installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from experiments.benchmarks.work import Work

PACKAGES = {
    "numpy": "numpy",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "torch": "torch",
    "diffusers": "diffusers",
    "artifex": "avitai-artifex",
}  # what is imported -> what is installed


def start(order: dict[str, Any]) -> tuple[Work | None, dict[str, Any]]:
    """Returns (the work, the answer): made, and done twice, of which the first run also compiles."""
    if order["package"] and importlib.util.find_spec(order["package"]) is None:
        return None, {"missing": order["package"]}
    begin = time.perf_counter()
    module, function = order["target"].split(":")
    work = getattr(importlib.import_module(module), function)(**order["kwargs"])
    answer: dict[str, Any] = {"setup_s": time.perf_counter() - begin}
    if work.run is not None:
        first, second = timed(work), timed(work)
        answer |= {"compile_s": max(first - second, 0.0) * work.units, "run_s": second * work.units}
    if work.output is not None and order["output"]:
        import numpy as np

        np.save(order["output"], work.output())
        answer["output"] = order["output"]
    answer["peak_mb"] = peak_mb()
    forget_peak()
    return work, answer


def timed(work: Work, calls: int = 1) -> float:
    """Returns the seconds that a unit of work takes, a mean over some calls in a row."""
    assert work.run is not None
    begin = time.perf_counter()
    for _ in range(calls):
        work.run()
    return (time.perf_counter() - begin) / (calls * work.units)


def peak_mb() -> float:
    """Returns the largest resident memory of this process so far, or since `forget_peak`, in MB of 10^6 bytes.

    Linux says it of this very program; getrusage also counts what the process was before it became this program.

    >>> peak_mb() > 1
    True
    """
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def forget_peak() -> bool:
    """Starts the count of `peak_mb` anew; returns whether the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def versions() -> dict[str, str]:
    """Returns the versions of the packages in `PACKAGES` that this process has imported, and Python's."""
    found = {"python": sys.version.split()[0]}
    for name, distribution in PACKAGES.items():
        if name in sys.modules:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(distribution)
    return found


def serve(orders: TextIO, answers: TextIO) -> None:
    """Answers orders until there are no more; an error ends it."""

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        work, answer = start(json.loads(orders.readline()))
        say(answer)
        for line in orders:
            order = json.loads(line)
            assert work is not None
            if "calls" in order:
                timed(work)
                say({"seconds": timed(work, order["calls"])})
            else:
                run_peak = peak_mb()
                say({"facts": dict(work.facts()), "run_peak_mb": run_peak, "versions": versions()})
    except Exception as error:  # of any kind: the other contenders go on without this one
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)
