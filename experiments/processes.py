"""Several processes that run one program: who they are, which rows each reads, and what they agree on.

    python -m experiments.train ... --coordinator=HOST:PORT --num_processes=2 --process_id=0   # and 1 on the other host
    srun python -m experiments.train ... --distributed                                         # SLURM, Cloud TPU

Every process runs the same command and holds a part of all devices. Each array of a jitted program is global. Process 0
writes the files; `lost_processes` ends the others when one of them has ended. Without these flags nothing here
communicates.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import diffusers_fn as dfn
from diffusers_fn.training.sharding import batch_axes
from experiments import coordination, lost_processes
from experiments.lock import lock

__all__ = [
    "Launch",
    "any_process",
    "contiguous",
    "define_flags",
    "from_main",
    "gather",
    "initialize",
    "is_main",
    "launch",
    "launch_of_flags",
    "local_rows",
    "locked",
    "on_main",
    "several",
    "wait",
]

_T = TypeVar("_T")
START = 300  # seconds in which all processes must connect
_LONG = 24 * 3600.0  # seconds; a lost process ends the wait much earlier
_numbers = itertools.count()


class Launch(NamedTuple):
    """How the processes find each other; all None: by the environment of SLURM, Cloud TPU, Kubernetes or Open MPI.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: their number.
      process_id: of this one.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def define_flags() -> None:
    """Defines --coordinator, --num_processes, --process_id and --distributed, and lists them in --help."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the processes of this run find each other.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of this run.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, 0 to num_processes - 1.", lower_bound=0)
    flags.DEFINE_bool("distributed", False, "One of several processes, which SLURM or a Cloud TPU has started.")
    for name in ("coordinator", "num_processes", "process_id", "distributed"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def launch_of_flags() -> Launch | None:
    """Returns `launch` of the flags of the command line."""
    given = flags.FLAGS
    return launch(given.coordinator, given.num_processes, given.process_id, given.distributed)


def launch(
    coordinator: str | None, num_processes: int | None, process_id: int | None, distributed: bool = False
) -> Launch | None:
    """Returns how this process finds the others; None for a run of one process.

    Raises:
      ValueError: if some of the three are missing, or contradict each other.

    >>> launch("10.0.0.1:1234", 2, 1)
    Launch(coordinator='10.0.0.1:1234', num_processes=2, process_id=1)
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == 3:
        return Launch() if distributed else None
    if distributed:
        raise ValueError("--distributed takes all from the environment: give it alone, or the other three flags")
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            f"a run of several processes needs --coordinator=HOST:PORT, --num_processes and --process_id; "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(f"--process_id must lie in 0 ... {num_processes - 1}, num_processes - 1; got {process_id}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234; got {coordinator!r}")
    return Launch(coordinator, num_processes, process_id)


def initialize(where: Launch | None) -> None:
    """Connects the processes of a run, before any other use of JAX; does nothing for None.

    Afterwards the standard output of all but process 0 is dropped.

    Raises:
      ValueError: if the environment names no processes, or the coordinator cannot be reached within five minutes. If
        other processes do not connect in this time, a message is printed and the process ends with the code 1.
    """
    if where is None:
        return
    jax.config.update("jax_enable_recoverability", True)  # `lost_processes` decides what the loss of one means
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)  # `stop` handles SIGTERM
    lost_processes.expect(where.coordinator, where.process_id, START)
    try:
        jax.distributed.initialize(
            *where,
            local_device_ids=None,
            cluster_detection_method=None if where.coordinator is None else "deactivate",
            initialization_timeout=START,
            heartbeat_timeout_seconds=lost_processes.HEARTBEAT,
        )
    except (ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ValueError(
            f"the processes of this run cannot be connected ({_first_line(error)}): give --coordinator=HOST:PORT, "
            "--num_processes and --process_id, or --distributed within SLURM or on a Cloud TPU"
        ) from error
    lost_processes.watch()
    if not is_main():
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)  # the lines of C code, too


def several() -> bool:
    """Returns whether this is one of several processes."""
    return coordination.board() is not None


def is_main() -> bool:
    """Returns whether this process writes the files of the run: process 0."""
    notes = coordination.board()
    return notes is None or notes.process_id == 0


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of a work directory, on process 0 for all, see `lock`."""
    with lock(workdir) if is_main() else contextlib.nullcontext():
        yield


def any_process(flag: bool) -> bool:
    """Returns whether the flag of any process is true; all processes must call it together.

    With one process nothing is communicated.
    """
    if not several():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_main(tree: Any) -> Any:
    """Returns the tree of NumPy arrays of process 0 on all processes; the others give one of the same shapes."""
    return tree if not several() else multihost_utils.broadcast_one_to_all(tree)


def on_main(work: Callable[[], _T]) -> _T | None:
    """Returns work() on process 0, and None on the others once it is done there."""
    result = work() if is_main() else None
    wait()
    return result


def wait() -> None:
    """Waits until all processes have called it as often as this one."""
    notes = coordination.board()
    if notes is not None:
        notes.barrier(f"wait/{next(_numbers)}", _LONG)


def local_rows(batch_size: int, mesh: Mesh | None = None) -> slice:
    """Returns which rows of a global batch this process reads: those that lie on its devices.

    Args:
      batch_size: number of rows, a multiple of the parts into which the mesh splits them.
      mesh: of the devices; None: all of them, in their order.

    Raises:
      ValueError: if the rows of this process are not contiguous.

    >>> local_rows(8)
    slice(0, 8, None)
    """
    if not several():
        return slice(0, batch_size)
    mesh = dfn.training.make_mesh() if mesh is None else mesh
    split = NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))
    places: Any = split.addressable_devices_indices_map((batch_size,))
    return contiguous(rows.indices(batch_size)[:2] for (rows,) in places.values())


def contiguous(pieces: Iterable[tuple[int, int]]) -> slice:
    """Returns the rows of several devices, each (start, stop) and some of them equal, as one slice.

    Raises:
      ValueError: if there are gaps.

    >>> contiguous([(4, 6), (4, 6), (6, 8)])
    slice(4, 8, None)
    """
    found = set(pieces)
    start, stop = min(first for first, _ in found), max(last for _, last in found)
    if sum(last - first for first, last in found) != stop - start:
        raise ValueError(
            f"the devices of this process hold the rows {sorted(found)} of a batch, which have gaps: order the devices "
            "of the mesh by process, and let mesh.tensor divide the devices of one process"
        )
    return slice(start, stop)


def gather(tree: Any) -> Any:
    """Returns a tree of arrays, which may be split over all processes, as whole NumPy arrays on each of them."""

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:200]
