"""The benchmark's side of the contenders' processes: starts them, sends them orders and ends them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import experiments
from experiments.benchmarks.work import Contender

__all__ = ["ROOT", "Missing", "Worker", "WorkerError", "file_name", "interpreters"]

ROOT = Path(experiments.__file__).parents[1]


class WorkerError(Exception):
    """A contender's process ended, failed or exceeded the time limit."""


class Missing(Exception):
    """The interpreter or a package that a contender needs is not installed."""


class Worker:
    """A contender's running process, a context manager.

    Attributes:
      started: the answer to the first order, with the times of setting up and of the first runs.

    Raises:
      Missing: if the interpreter or the contender's package is not installed.
      WorkerError: if the process cannot start.
    """

    def __init__(self, contender: Contender, folder: Path, python: str, timeout: float, output: str = "") -> None:
        """Starts the process and runs its work twice.

        Args:
          contender: the contender.
          folder: working directory of the process; its standard error is written to NAME.log there.
          python: the interpreter.
          timeout: longest wait for an answer, in seconds.
          output: file that the process writes its output to, or "" for none.
        """
        self._timeout = timeout
        self._log = folder / f"{file_name(contender.name)}.log"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Compilation is measured: nothing is read from a cache unless the contender sets one.
        inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        try:
            self._process = subprocess.Popen(
                [python, "-m", "experiments.benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.open("wb"),
                cwd=folder,
                env={**inherited, "PYTHONPATH": path, **contender.env},
            )
        except OSError as error:
            raise Missing(f"interpreter {python}") from error
        self._orders: Any = self._process.stdin
        self._answers: Any = self._process.stdout
        try:
            order = {"target": contender.target, "kwargs": dict(contender.kwargs), "package": contender.package}
            self.started = self._ask({**order, "output": output})
        except BaseException:
            self.close()
            raise
        if "missing" in self.started:
            self.close()
            raise Missing(self.started["missing"])

    def run(self, calls: int) -> float:
        """Returns the mean seconds per unit of work over `calls` consecutive calls."""
        return self._ask({"calls": calls})["seconds"]

    def finish(self) -> dict[str, Any]:
        """Returns the facts, memory and package versions of the process."""
        return self._ask({})

    def close(self) -> None:
        """Ends the process."""
        try:
            self._orders.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()
        except BrokenPipeError:
            raise WorkerError(f"the process ended: {self._last_log_line()}") from None
        ready, _, _ = select.select([self._answers], [], [], self._timeout)
        if not ready:
            self._process.kill()
            raise WorkerError(f"no answer within {self._timeout:g} s (config.timeout_s)")
        line = self._answers.readline()
        if not line:
            raise WorkerError(f"the process ended: {self._last_log_line()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_log_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.poll()}"


def file_name(name: str) -> str:
    """Returns a file name for a contender, without suffix.

    >>> file_name("torch, channels-last")
    'torch__channels_last'
    """
    return "".join(c if c.isalnum() else "_" for c in name)


def interpreters(contender: Contender, peer_python: str) -> list[str]:
    """Returns the interpreters to try for a contender, in order.

    >>> interpreters(Contender("torch", "m:f", peer=True), "/opt/torch/bin/python,/opt/artifex/bin/python")
    ['/opt/torch/bin/python', '/opt/artifex/bin/python']
    """
    return peer_python.split(",") if contender.peer and peer_python else [sys.executable]
