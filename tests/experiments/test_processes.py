"""Several processes: flags, rows, the step at which all stop; training, sampling, signals and losses in real ones."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import diffusers_fn as dfn
from experiments import lost_processes, over_devices, processes, states, trained
from experiments.stop_together import StopTogether
from experiments.workdir import read_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", None, None), "--num_processes and --process_id are missing"),
        ((None, 2, 0), "--coordinator is missing"),
        (("a:1", 2, 2), "--process_id must lie in 0 ... 1"),
        (("a", 2, 0), "--coordinator must be HOST:PORT"),
        (("a:1", 2, 0, True), "give it alone"),
    ],
)
def test_incomplete_flags_are_refused_with_what_is_missing(given, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        processes.launch(*given)


def test_without_flags_there_is_one_process_which_does_all():
    assert processes.launch(None, None, None) is None
    assert processes.launch(None, None, None, True) == processes.Launch()
    assert processes.is_main()
    assert processes.any_process(True) is True
    assert processes.any_process(False) is False
    assert processes.local_rows(24) == slice(0, 24)
    assert processes.on_main(lambda: 7) == 7


def test_the_command_line_names_the_flags_that_are_missing(command, tmp_path):
    output = command("train", f"--workdir={tmp_path}", "--coordinator=localhost:1234", code=1)
    assert "--num_processes and --process_id are missing" in output
    for binary in ("sample", "evaluate", "bits_per_dim", "encode"):
        assert "--coordinator: HOST:PORT of process 0" in command(binary, "--help")


def test_rows_of_a_process_must_be_contiguous():
    assert processes.contiguous([(4, 6), (6, 8), (4, 6)]) == slice(4, 8)
    with pytest.raises(ValueError, match="gaps"):
        processes.contiguous([(0, 2), (4, 6)])


class Notes:
    """Notes of several processes that are threads."""

    def __init__(self, process_id, num_processes, held, condition):
        self.process_id, self.num_processes = process_id, num_processes
        self._held, self._condition = held, condition

    def write(self, name, text):
        with self._condition:
            self._held[name] = text
            self._condition.notify_all()

    def read(self, name, seconds):
        with self._condition:
            self._condition.wait_for(lambda: name in self._held, min(seconds, 0.05))
            return self._held.get(name)


@pytest.mark.parametrize("asked", [0, 2])
def test_processes_of_different_speed_stop_after_the_same_call(asked):
    held, condition = {}, threading.Condition()
    stops = [StopTogether(Notes(i, 3, held, condition)) for i in range(3)]
    calls, barrier = [0, 0, 0], threading.Barrier(3)

    def train(process):
        while stops[process].may_call():
            calls[process] += 1
            time.sleep(0.001 * process)
            if calls[process] % 5 == 0:  # a collective operation, which no process passes alone
                barrier.wait(timeout=10)

    threads = [threading.Thread(target=train, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert all(thread.is_alive() for thread in threads)
    stops[asked].request()
    for thread in threads:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)
    assert calls[0] == calls[1] == calls[2] > 5
    assert not any(stop.may_call() for stop in stops)


def test_with_one_process_errors_and_exits_pass_unchanged():
    for error in (ValueError("bad"), SystemExit(75), SystemExit("message"), jax.errors.JaxRuntimeError("lost")):
        with pytest.raises(type(error)) as raised, lost_processes.ending_together():
            raise error
        assert raised.value is error


@pytest.mark.parametrize("n", [3, 8, 13])
def test_rows_split_over_devices_are_those_given(n):
    mesh = dfn.training.make_mesh()
    tree = jax.random.split(jax.random.key(0), n), np.arange(n)
    keys, numbers = over_devices.split_rows(tree, mesh)
    assert len(numbers) % mesh.size == 0
    assert len({shard.device for shard in numbers.addressable_shards}) == mesh.size
    assert over_devices.first_rows(numbers, n).tolist() == list(range(n))
    assert (over_devices.first_rows(jax.random.key_data(keys), n) == jax.random.key_data(tree[0])).all()


def test_samples_on_eight_devices_are_those_on_one():
    def draw(params, keys, labels):
        return params * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys) + labels[:, None]

    key, labels = jax.random.key(0), np.arange(13)
    found = {}
    for count in (1, 8):
        params = dfn.training.replicate(np.float32(2.0), dfn.training.make_mesh(devices=jax.devices()[:count]))
        found[count] = trained.draw_in_batches(draw, params, key, labels, 13, 5, "sampling")
    assert found[8].shape == (13, 3)
    assert (found[1] == found[8]).all()


# Real processes, two with four devices each.

SETTINGS = (
    f"--config={ROOT / 'configs' / 'ddpm_digits.py'}",
    "--config.backbone.hidden_size=16",
    "--config.backbone.depth=1",
    "--config.training.num_steps=60",
    "--config.training.warmup_steps=5",
    "--config.training.batch_size=32",
    "--config.training.log_every=5",
    "--config.training.checkpoint_every=10",
    "--config.training.heldout_every=30",
    "--config.training.sample_every=30",
    "--config.sampler.num_inference_steps=3",
)
HEARTBEAT = 6
BINARY = """
import runpy, sys
from experiments import lost_processes, processes
lost_processes.HEARTBEAT, processes.START = {heartbeat}, {start}
runpy.run_module("experiments.{binary}", run_name="__main__")
"""
IDLE = """
import sys, time
from experiments import processes
where, number, process = (flag.split("=")[1] for flag in sys.argv[1:])
processes.initialize(processes.launch(where, int(number), int(process)))
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Group:
    """Processes of one run, whose outputs go to files."""

    def __init__(self, folder, binary, *arguments, number=2, devices=4, program=BINARY):
        folder.mkdir(exist_ok=True)
        where = f"--coordinator=localhost:{free_port()}"
        flags = (*os.environ["XLA_FLAGS"].split(), f"--xla_force_host_platform_device_count={devices}")
        text = program.format(binary=binary, heartbeat=HEARTBEAT, start=300)
        self.files, self.processes = [], []
        for i in range(number):
            command = [text, *map(str, arguments), where, f"--num_processes={number}", f"--process_id={i}"]
            self.files.append(folder / f"{binary}.{i}.{time.monotonic_ns()}")
            with self.files[-1].open("w") as output:
                env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | {"XLA_FLAGS": " ".join(flags)}
                command = [sys.executable, "-c", *command]
                self.processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output))

    def output(self, i):
        return self.files[i].read_text()

    def wait(self, *codes):
        """Waits for the exit codes; returns the output of process 0."""
        try:
            found = tuple(process.wait(timeout=150) for process in self.processes)
        finally:
            for process in self.processes:
                process.kill()
        assert found == codes, "\n\n".join(map(self.output, range(len(found))))
        return self.output(0)

    def wait_for_step(self, workdir, step):
        deadline = time.monotonic() + 150
        while last_step(workdir) < step:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in self.processes), self.output(0) + self.output(1)
            time.sleep(0.02)


def entries(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(workdir):
    return max((entry["step"] for entry in entries(workdir)), default=0)


def final_state(workdir):
    config = read_config(workdir)
    step, state = states.load_state(config, workdir, states.state_like(config, dfn.build(config).init))
    assert step == 60
    return state


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run of two processes, and the group that trained it."""
    folder = tmp_path_factory.mktemp("two")
    group = Group(folder, "train", *SETTINGS, f"--workdir={folder / 'run'}")
    group.wait(0, 0)
    return folder / "run", group


@pytest.mark.long
def test_training_in_two_processes_is_that_in_one(undisturbed, command, tmp_path):
    workdir, group = undisturbed
    command("train", *SETTINGS, f"--workdir={tmp_path / 'one'}")
    one, two = entries(tmp_path / "one"), entries(workdir)
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([e[name] for e in two], [e[name] for e in one], rtol=1e-5)
    scores = [[entry["heldout_loss"] for entry in each if "heldout_loss" in entry] for each in (two, one)]
    assert len(scores[0]) == 2
    np.testing.assert_allclose(*scores, rtol=1e-5)
    for here, there in zip(jax.tree.leaves(final_state(workdir)), jax.tree.leaves(final_state(tmp_path / "one"))):
        np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-5)
    assert (workdir / "samples" / "00000030.png").exists()
    assert not any(word in group.output(1) for word in ("training", "compiling", "done", "Traceback", "Gloo"))
    assert all(text in group.output(0) for text in ("8 cpu device(s)", "done: samples in"))


@pytest.mark.long
def test_killed_and_stopped_processes_end_the_others_and_the_same_command_resumes(undisturbed, tmp_path):
    quick = ("--config.training.heldout_every=0", "--config.training.sample_every=0")  # the steps are the same
    arguments = (*SETTINGS, *quick, f"--workdir={tmp_path / 'run'}")
    group = Group(tmp_path, "train", *arguments)
    group.wait_for_step(tmp_path / "run", 15)
    group.processes[1].kill()
    killed = time.monotonic()
    output = group.wait(lost_processes.PREEMPTED, -signal.SIGKILL)
    assert time.monotonic() - killed < 40
    assert "process 1 of this run cannot be reached any more" in output
    assert "the same command, started again for all processes, resumes" in output

    group = Group(tmp_path, "train", *arguments)
    group.wait_for_step(tmp_path / "run", 30)
    group.processes[1].send_signal(signal.SIGTERM)
    output = group.wait(lost_processes.PREEMPTED, lost_processes.PREEMPTED)
    assert 10 <= int(output.split("resuming at step ")[1].split()[0]) < 60
    stopped = int(output.split("stopped at step ")[1].split()[0])
    assert 30 <= stopped < 60
    assert (tmp_path / "run" / "checkpoints" / str(stopped)).is_dir()

    output = Group(tmp_path, "train", *arguments).wait(0, 0)
    assert f"resuming at step {stopped}" in output
    pairs = zip(*(jax.tree.leaves(final_state(each)) for each in (undisturbed[0], tmp_path / "run")), strict=True)
    assert all((here == there).all() for here, there in pairs)


@pytest.mark.long
def test_the_loss_of_process_0_ends_the_others(tmp_path):
    group = Group(tmp_path, "idle", program=IDLE)
    deadline = time.monotonic() + 100
    while "ready" not in group.output(1):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    group.processes[0].kill()
    killed = time.monotonic()
    assert group.processes[1].wait(timeout=60) != 0
    assert time.monotonic() - killed < 30
    group.processes[0].wait()
    if jax.__version_info__ >= (0, 9):  # earlier versions leave no time for a message of ours
        assert group.processes[1].returncode == lost_processes.PREEMPTED
        assert "process 0 of this run cannot be reached any more" in group.output(1)


@pytest.mark.long
def test_samples_of_two_processes_are_those_of_one(undisturbed, command, tmp_path):
    workdir, _ = undisturbed
    options = (f"--workdir={workdir}", "--num_samples=30", "--batch_size=12", "--seed=3")
    Group(tmp_path, "sample", *options, f"--output={tmp_path / 'two'}").wait(0, 0)
    command("sample", *options, f"--output={tmp_path / 'one'}")
    with np.load(tmp_path / "one" / "samples.npz") as one, np.load(tmp_path / "two" / "samples.npz") as two:
        assert two["samples"].shape[0] == 30
        np.testing.assert_allclose(two["samples"], one["samples"], rtol=0, atol=1e-5)
        assert (two["labels"] == one["labels"]).all()
    assert not (tmp_path / "two" / "parts").exists()


@pytest.mark.long
def test_a_coordinator_that_cannot_be_reached_is_named(tmp_path):
    where = f"localhost:{free_port()}"
    program = BINARY.format(binary="train", heartbeat=HEARTBEAT, start=3)
    flags = (f"--workdir={tmp_path}", f"--coordinator={where}", "--num_processes=2", "--process_id=1")
    command = [sys.executable, "-c", program, *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert f"error: the coordinator at {where} could not be reached within 3 s" in ended.stderr
