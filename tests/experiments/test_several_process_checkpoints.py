"""Checkpoints of two processes with four devices each, and between one process and two."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("several_process_checkpoints.py")


@pytest.mark.long
def test_two_processes_save_restore_and_fail_together(tmp_path):
    spec = importlib.util.spec_from_file_location("several_process_checkpoints", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    one = Checkpoints(tmp_path / "one")
    one.save(7, script.state_on(script.layout(2, 4)))
    one.close()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, coordinator, str(number), tmp_path],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    for number in range(2):
        found = json.loads((tmp_path / f"found-{number}.json").read_text())
        assert found["one process to two"] == [7, True]
        assert found["shard of process 1 is damaged"] == [1, True, {"batch_offset": 3}]
        assert found["set aside"]
        assert found["donated"]
        expected = "the state of step 4 is not finite (in w)" if number else "process 1 could not write its part"
        assert expected in found["not finite in process 1"]
        expected = "No space left on device" if number else "process 1 could not write its part"
        assert expected in found["disk of process 1 is full"]
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir() if path.name[0] != ".") == [
        "1",
        "3",
    ]

    two = Checkpoints(tmp_path / "two")  # removes what is unfinished
    assert len(list((tmp_path / "two" / "checkpoints").iterdir())) == 2
    for fsdp, tensor in ((8, 1), (2, 4)):
        restored = two.restore(script.layout(fsdp, tensor))
        assert restored.step == 3
        assert script.agrees(restored.state, 10)
    np.testing.assert_array_equal(two.restore(script.VALUES).state["w"], script.VALUES["w"] + 10)
    two.close()
