"""Training runs in processes of their own, which the fault matrix kills and resumes."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Run", "Settings", "newest", "unfinished"]

_ROOT = Path(__file__).resolve().parents[2]
_SLOWEST = 600.0  # seconds for a run


class Settings:
    """The small run that all rows train, and the undisturbed runs to compare with.

    Attributes:
      num_steps: of a run.
      devices: number of its devices.
      start_up: seconds that a process needs before its first step, once its programs are in the compilation cache.
    """

    def __init__(self, folder: Path, num_steps: int = 600, devices: int = 4):
        """Prepares runs in a folder, which also gets a compilation cache."""
        self.folder, self.num_steps, self.devices, self.start_up = folder, num_steps, devices, 8.0
        self._whole: dict[int, Path] = {}
        self._number = 0

    def new_workdir(self, name: str) -> Path:
        """Returns the folder of a new run, which does not exist yet."""
        self._number += 1
        return self.folder / f"{self._number:03d}-{name}"

    def undisturbed(self, processes: int) -> Path:
        """Returns the work directory of a run that nothing happened to; it is trained once."""
        if processes not in self._whole:
            workdir = self.new_workdir(f"undisturbed-{processes}")
            codes = (run := Run(self, workdir, processes)).end(_SLOWEST)
            if codes != [0] * processes:
                raise RuntimeError(f"the undisturbed run failed: {run.tail()}")
            self._whole[processes] = workdir
        return self._whole[processes]

    def command(self, workdir: Path) -> list[str]:
        """Returns the command that starts or resumes a run."""
        fields = {
            "backbone.hidden_size": 16,
            "backbone.depth": 1,
            "training.num_steps": self.num_steps,
            "training.batch_size": 32,
            "training.warmup_steps": 5,
            "training.checkpoint_every": 10,
            "training.keep_every": self.num_steps // 4,
            "training.log_every": 10,
            "training.sample_every": 0,
            "training.heldout_every": 0,
            "sampler.num_inference_steps": 3,
        }
        return [
            *(sys.executable, "-m", "experiments.train"),
            f"--config={_ROOT / 'configs' / 'ddpm_digits.py'}",
            f"--workdir={workdir}",
            f"--compilation_cache={self.folder / 'compiled'}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ]


class Run:
    """A run, or the part of it until it is killed, in one process or several; all have the output of process 0."""

    def __init__(
        self,
        settings: Settings,
        workdir: Path,
        processes: int = 1,
        *,
        devices: int | None = None,
        options: Sequence[str] = (),
        max_file_bytes: int | None = None,
    ):
        """Starts the processes.

        Args:
          settings: of the run.
          workdir: its work directory.
          processes: their number.
          devices: of all of them together; None: those of the settings.
          options: further arguments of the command.
          max_file_bytes: largest file that they can write; None: any.
        """
        own = (devices or settings.devices) // processes
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("JAX_")},
            "PYTHONPATH": str(_ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={own}",
        }
        command = [*settings.command(workdir), *options]
        port = _free_port() if processes > 1 else 0
        limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes,) * 2)) if max_file_bytes else None
        self._logs = [settings.folder / f"{time.monotonic_ns()}-{number}.log" for number in range(processes)]
        self.processes = []
        for number, log in enumerate(self._logs):
            together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={number}"]
            with open(log, "wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *(together if processes > 1 else [])],
                        cwd=_ROOT,
                        env=env,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        preexec_fn=limit,
                    )
                )

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; returns False if a process ended before, and ends all after ten minutes."""
        deadline = time.monotonic() + _SLOWEST
        while not condition():
            if any(code is not None for code in self.codes()):
                return False
            if time.monotonic() > deadline:
                self.kill(range(len(self.processes)))
                raise RuntimeError(f"nothing happened for {_SLOWEST:.0f} s: {self.tail()}")
            time.sleep(0.001)
        return True

    def kill(self, which: Sequence[int]) -> None:
        """Sends SIGKILL to processes, and waits until they are gone."""
        for number in which:
            self.processes[number].kill()
        for number in which:
            self.processes[number].wait()

    def end(self, seconds: float) -> list[int | None]:
        """Waits for the end of all processes, and kills those that do not end in time; returns the exit codes."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return self.codes()

    def codes(self) -> list[int | None]:
        """Returns the exit codes; None for processes that run."""
        return [process.poll() for process in self.processes]

    def output(self, number: int) -> str:
        """Returns what a process has printed."""
        return self._logs[number].read_text(errors="replace")

    def tail(self) -> str:
        """Returns the last line of each process."""
        return " | ".join((self.output(number).strip().splitlines() or [""])[-1] for number in range(len(self._logs)))

    def resumed_at(self) -> int | None:
        """Returns the step from which the run went on; None if it ended before, or was new."""
        match = re.search(r"resuming at step (\d+)", self.output(0))
        return int(match[1]) if match else None


def newest(workdir: Path) -> int:
    """Returns the step of the newest complete checkpoint; 0 if there is none."""
    return max((int(name) for name in _names(workdir) if name.isdigit()), default=0)


def unfinished(workdir: Path) -> int:
    """Returns the step of the newest checkpoint that is being written, or was when its process was killed; else 0."""
    return max((int(name[1:-4]) for name in _names(workdir) if re.fullmatch(r"\.\d+\.tmp", name)), default=0)


def _names(workdir: Path) -> list[str]:
    try:
        return os.listdir(workdir / "checkpoints")
    except FileNotFoundError:
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
