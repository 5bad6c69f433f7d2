"""Notes between the processes of a run, through JAX's coordination service, which process 0 hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # JAX has no public functions for its client and the address

__all__ = ["Board", "address", "board"]


class Board:
    """Notes by name that every process of a run can write and wait for. Nothing runs on the devices.

    All methods raise ConnectionError once the service is gone.
    """

    def __init__(self, client: Any, process_id: int, num_processes: int):
        """Takes JAX's client of the coordination service."""
        self._client = client
        self.process_id, self.num_processes = process_id, num_processes

    def write(self, name: str, text: str) -> None:
        """Writes a note; one that exists is replaced."""
        with _connected():
            self._client.key_value_set(f"experiments/{name}", text, allow_overwrite=True)

    def read(self, name: str, seconds: float) -> str | None:
        """Returns a note, waiting until it is written; None if it is not within this time."""
        try:
            with _connected():
                text: str = self._client.blocking_key_value_get(f"experiments/{name}", int(1000 * seconds))
        except ConnectionError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise
        return text

    def live(self) -> set[int]:
        """Returns the processes that live; waits until each of them has called this."""
        with _connected():
            return set(self._client.get_live_nodes(list(range(self.num_processes))))

    def barrier(self, name: str, seconds: float) -> None:
        """Waits until every process has called this with the same name."""
        with _connected():
            self._client.wait_at_barrier(f"experiments/{name}", int(1000 * seconds))


def board() -> Board | None:
    """Returns the board of this run; None unless jax.distributed was initialized for several processes."""
    state = distributed.global_state
    if state.client is None or state.num_processes < 2:
        return None
    return Board(state.client, state.process_id, state.num_processes)


def address() -> str:
    """Returns HOST:PORT of process 0, as far as JAX knows it."""
    return distributed.global_state.coordinator_address or "an unknown address"


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(str(error)) from error
