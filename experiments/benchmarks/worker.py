"""A contender's process: reads orders as lines of JSON and writes answers as lines of JSON.

    {"target", "kwargs", "package", "output": a file}  ->  {"setup_s", "compile_s", "run_s", "peak_mb", "output"}
    {"calls": 3}                                       ->  {"seconds": of one unit of work}
    {}                                                 ->  {"facts", "run_peak_mb", "versions"}

peak_mb is the largest memory of setting up, compiling and the first two runs; run_peak_mb that of the later runs.

One call precedes the timed ones, because memory of a step or a sampler was returned to the system while other
contenders had their turns. The times are therefore those of consecutive steps.

Output of the work itself goes to standard error. The process sleeps between two orders, so that thread pools do not
compete. This file needs only the standard library, because it also runs where JAX is not installed.
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

__all__ = ["PACKAGES", "forget_peak", "peak_mb", "serve", "start", "timed", "versions"]

PACKAGES = {
    "numpy": "numpy",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "torch": "torch",
    "diffusers": "diffusers",
    "artifex": "avitai-artifex",
}  # name of the module -> name of the distribution


def start(order: dict[str, Any]) -> tuple[Work | None, dict[str, Any]]:
    """Returns (work, answer) after two runs of the work; the first run also compiles."""
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
    """Returns the seconds per unit of work, the mean over `calls` consecutive calls."""
    assert work.run is not None
    begin = time.perf_counter()
    for _ in range(calls):
        work.run()
    return (time.perf_counter() - begin) / (calls * work.units)


def peak_mb() -> float:
    """Returns the largest resident memory of this process so far, or since `forget_peak`, in MB (10^6 bytes).

    It is read from /proc on Linux, because getrusage also counts the parent's memory from before the exec.

    >>> peak_mb() > 1
    True
    """
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def forget_peak() -> bool:
    """Resets the maximum that `peak_mb` returns; returns whether the system supports that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages in `PACKAGES` that this process has imported."""
    found = {"python": sys.version.split()[0]}
    for name, distribution in PACKAGES.items():
        if name in sys.modules:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(distribution)
    return found


def serve(orders: TextIO, answers: TextIO) -> None:
    """Answers orders until the end of the input or the first error."""

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        work, answer = start(json.loads(orders.readline()))
        send(answer)
        for line in orders:
            order = json.loads(line)
            assert work is not None
            if "calls" in order:
                timed(work)
                send({"seconds": timed(work, order["calls"])})
            else:
                run_peak = peak_mb()
                send({"facts": dict(work.facts()), "run_peak_mb": run_peak, "versions": versions()})
    except Exception as error:  # the other contenders continue without this one
        traceback.print_exc()
        send({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)
