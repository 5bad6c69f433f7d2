"""Starting Python and importing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from experiments.benchmarks.work import Work

__all__ = ["start"]


def start(modules: Sequence[str]) -> Work:
    """Starts the interpreter, imports the modules and exits."""
    command = [sys.executable, "-c", "import " + ", ".join(modules)]
    return Work(run=lambda: subprocess.run(command, check=True))
