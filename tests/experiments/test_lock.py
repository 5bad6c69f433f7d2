"""The lock of a work directory."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments import lock as locks
from experiments.lock import lock

ROOT = Path(__file__).resolve().parents[2]


def hold(path, **holder):
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "since": "noon", **holder}))


def test_a_second_holder_is_refused_with_the_name_of_the_first(tmp_path):
    with lock(tmp_path):
        before = (tmp_path / "lock").read_bytes()
        holder = f"process {os.getpid()} on {socket.gethostname()}, since 20"
        with pytest.raises(ValueError, match=f"in use: {holder}"), lock(tmp_path):
            pass
        assert (tmp_path / "lock").read_bytes() == before
    with lock(tmp_path):  # released, and can be taken again
        pass
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    program = "import sys, time; from pathlib import Path; from experiments.lock import lock\n"
    program += "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on"), lock(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / "lock").exists()  # it could not remove it
    with lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_processes_exclude_each_other(tmp_path):
    program = """
import sys
from pathlib import Path
from experiments.lock import lock
counter, taken = Path(sys.argv[1], "counter"), 0
while taken < 50:
    try:
        with lock(counter.parent):
            value = int(counter.read_text())
            counter.write_text(str(value + 1))
            taken += 1
    except ValueError:  # another one holds it
        pass
"""
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "150"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_a_new_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with pytest.raises(FloatingPointError), lock(tmp_path / "a" / "b"):
        raise FloatingPointError
    assert not (tmp_path / "a").exists()
    with lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "config.json").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]


@pytest.mark.parametrize("free", [True, None])  # the system's lock says nothing of other hosts, or there is none
def test_a_holder_on_another_host_counts_while_it_shows_life(tmp_path, monkeypatch, free):
    monkeypatch.setattr(locks, "_PATIENCE", 0.5)
    monkeypatch.setattr(locks, "_flock", lambda file: free)
    path = tmp_path / "lock"
    hold(path, host="elsewhere")
    with lock(tmp_path):  # no sign of life
        pass

    hold(path, host="elsewhere")
    stop = threading.Event()

    def show_life():
        while not stop.wait(0.05):
            os.utime(path)

    beat = threading.Thread(target=show_life)
    beat.start()
    with (
        pytest.raises(ValueError, match=r"on elsewhere, since noon.* may not share locks"),
        lock(tmp_path),
    ):
        pass
    stop.set()
    beat.join()


def test_without_locks_of_the_system_the_process_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_flock", lambda file: None)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    hold(tmp_path / "lock", pid=dead.pid)
    with lock(tmp_path):
        pass
    hold(tmp_path / "lock", pid=os.getppid())
    with pytest.raises(ValueError, match=f"process {os.getppid()} on"), lock(tmp_path):
        pass


def test_the_holder_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT", 0.02)
    with lock(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
