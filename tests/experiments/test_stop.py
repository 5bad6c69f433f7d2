"""Signals: requests to stop, leaving at once, restored handlers; also while the main thread is in a call of C code."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.stop import PREEMPTED, StopSignal

ROOT = Path(__file__).resolve().parents[2]


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_the_handlers_come_back(capsys, number):
    mine = lambda number, frame: None  # noqa: E731
    before = signal.signal(number, mine)
    try:
        with StopSignal() as stop:
            assert not stop.requested
            signal.raise_signal(number)
            assert stop.requested
            printed = []
            assert eventually(lambda: printed.append(capsys.readouterr().out) or "".join(printed))
            assert "stopping after this step" in "".join(printed)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is mine
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(number, before)


def test_where_all_is_saved_a_signal_ends_the_run(capsys):
    with pytest.raises(SystemExit) as left, StopSignal() as stop, stop.leave_at_once("all is saved"):
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == PREEMPTED == 75
    assert "all is saved" in capsys.readouterr().out


def test_after_a_request_nothing_long_is_begun():
    begun = []
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit), stop.leave_at_once("all is saved"):
            begun.append(1)
    assert not begun


def test_outside_the_main_thread_handlers_stay_as_they_are():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with StopSignal() as stop, stop.leave_at_once("all is saved"):
            found.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]


IN_C = """
import contextlib, hashlib
from experiments.stop import StopSignal
with StopSignal(own_process=True) as stop, {context}:
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # many minutes, without a Python instruction
"""


@pytest.mark.parametrize(
    ("context", "answers", "code"),
    [
        ("contextlib.nullcontext()", ["stopping after this step", ""], 128 + signal.SIGTERM),
        ("stop.leave_at_once('all is saved')", ["all is saved"], PREEMPTED),
    ],
    ids=["second signal", "leave at once"],
)
def test_signals_are_answered_during_a_call_of_c_code(context, answers, code):
    process = subprocess.Popen(
        [sys.executable, "-c", IN_C.format(context=context)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)  # into the call
    for answer in answers:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert answer in process.stdout.readline()
        assert time.monotonic() - began < 5
    assert process.wait(timeout=5) == code
