"""Contenders' processes, seen from the benchmark: started, asked in turn, ended."""

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

ROOT = Path(experiments.__file__).parents[1]


class WorkerError(Exception):
    """A contender's process ended, failed or was too slow; the message says which."""


class Missing(Exception):
    """A package, or the interpreter, that a contender needs is not installed."""


class Worker:
    """A running process of a contender: use it in a `with` statement.

    Attributes:
      started: what it said of its start.

    Raises:
      Missing: if it lacks its package.
      WorkerError: if it cannot start.
    """

    def __init__(self, contender: Contender, folder: Path, python: str, timeout: float, output: str = "") -> None:
        """Starts the process and does its work twice.

        Args:
          contender: what it does.
          folder: where it works; its standard error goes there, as NAME.log.
          python: the interpreter.
          timeout: seconds that an answer may take.
          output: the file to write its output to, or "".
        """
        self._timeout = timeout
        self._log = folder / f"{file_name(contender.name)}.log"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Compiles are measured: none is read from a cache unless the contender names one.
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
        """Returns the mean seconds of a unit of work over some calls in a row."""
        return self._ask({"calls": calls})["seconds"]

    def finish(self) -> dict[str, Any]:
        """Returns its facts, memory and versions."""
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
            raise WorkerError(f"the process ended: {self._last_words()}") from None
        ready, _, _ = select.select([self._answers], [], [], self._timeout)
        if not ready:
            self._process.kill()
            raise WorkerError(f"no answer in {self._timeout:g} s")
        line = self._answers.readline()
        if not line:
            raise WorkerError(f"the process ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.poll()}"


def file_name(name: str) -> str:
    """Returns a name for files of a contender.

    >>> file_name("torch, channels-last")
    'torch__channels_last'
    """
    return "".join(c if c.isalnum() else "_" for c in name)


def interpreters(contender: Contender, peer_python: str) -> list[str]:
    """Returns the interpreters that may have what a contender needs.

    >>> interpreters(Contender("torch", "m:f", peer=True), "/opt/torch/bin/python,/opt/artifex/bin/python")
    ['/opt/torch/bin/python', '/opt/artifex/bin/python']
    """
    return peer_python.split(",") if contender.peer and peer_python else [sys.executable]
