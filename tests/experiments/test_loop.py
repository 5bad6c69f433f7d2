"""The training loop with a network of one number: steps in flight, stops, skipped steps, returns, full disks."""

import contextlib
import errno
import functools
import json
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.from_config.defaults import customise, default_config
from experiments import data, goodput, heldout, loop, metric_log, monitor, tasks
from experiments.checkpoints import Checkpoints, Restored
from experiments.loop import Parts, run_loop
from experiments.metric_log import MetricLog
from experiments.skipped import MAX_RETURNS, Recovery, blame
from experiments.stop import PREEMPTED, StopSignal


class State(NamedTuple):
    step: Any
    ema: Any
    extras: Any = None


NEW = State(jnp.zeros((), jnp.int32), jnp.zeros(()))


@functools.partial(jax.jit, donate_argnums=0)
def train_steps(state, key, batch):
    """Each step adds its batch's number to the parameter, unless that is poisoned (NaN)."""

    def step(state, x):
        good = jnp.isfinite(x)
        # Half of a number is exact, so that all programs round alike, whether or not they fuse the sum.
        new = State(state.step + 1, jnp.where(good, 0.5 * state.ema + x, state.ema), state.extras)
        return new, {"loss": x, "skipped": 1.0 - good}

    return jax.lax.scan(step, state, batch)


def settings(**training):
    steps = {
        "num_steps": 40,
        "log_every": 10,
        "checkpoint_every": 10,
        "sample_every": 0,
        "max_skipped": 3,
        "warmup_steps": 4,
    }
    return customise(default_config(), training={**steps, **training})


class Run:
    """A run of the loop in a folder; `poisoned` are numbers of batches, `on_batch` a function of each number."""

    def __init__(
        self,
        workdir,
        config=None,
        poisoned=(),
        on_batch=lambda number: None,
        draw=None,
        sinks=(),
        train_steps=train_steps,
        **parts,
    ):
        self.config = settings() if config is None else config
        self.workdir, self.poisoned, self.on_batch = workdir, set(poisoned), on_batch
        self.parts, self.sinks, self.train_steps, self.drawn, self.batches = parts, sinks, train_steps, [], []
        self.draw = draw or (lambda ema, extras, path: self.drawn.append(path.name))

    def batches_from(self, number):
        size = self.config.training.steps_per_call
        while True:
            self.on_batch(number)
            numbers = range(number, number + size)
            self.batches += numbers
            yield jnp.asarray([np.nan if n in self.poisoned else float(n) for n in numbers])
            number += size

    def __call__(self):
        """Trains; returns (whether finished, final step and parameter on disk, metrics)."""
        checkpoints = Checkpoints(self.workdir, keep=3)
        (self.workdir / "samples").mkdir(exist_ok=True)

        def go_back(accept=lambda meta: True):
            found = checkpoints.restore(NEW, accept) or Restored(0, NEW, {})
            return found._replace(state=jax.tree.map(jnp.array, found.state))

        start = go_back()
        log = MetricLog(self.workdir, start.step, self.sinks)
        explain = lambda state, step, batch, number: f"batch {number} is {batch}"  # noqa: E731
        parts = Parts(self.train_steps, jax.random.key(0), self.batches_from, go_back, self.draw, explain, **self.parts)
        with StopSignal() as stop:
            finished = run_loop(self.config, self.workdir, start, parts, checkpoints, log, stop)
        return finished, final(self.workdir), metrics_of(self.workdir)


def final(workdir):
    reader = Checkpoints(workdir, read_only=True)
    restored = reader.restore(NEW)
    reader.close()
    return restored.step, float(restored.state.ema)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def expected(numbers):
    """The parameter after steps with these batches, as the loop computes it."""
    state = jax.tree.map(jnp.array, NEW)
    for number in numbers:
        state, _ = train_steps(state, None, jnp.asarray([float(number)]))
    return float(state.ema)


def test_a_run_trains_and_logs(tmp_path):
    entries = []
    finished, (step, value), metrics = Run(tmp_path, sinks=[lambda step, values: entries.append((step, values))])()
    assert finished
    assert (step, value) == (40, expected(range(40)))
    assert [entry["step"] for entry in metrics] == [10, 20, 30, 40]
    assert [entry["loss"] for entry in metrics] == [4.5, 14.5, 24.5, 34.5]
    assert {"step": entries[0][0], **entries[0][1]} == metrics[0]
    assert metrics[0]["examples_per_second"] == pytest.approx(metrics[0]["steps_per_second"] * 128)
    assert {"learning_rate", "data_wait", "skipped"} <= set(metrics[0])


@pytest.mark.parametrize(("slow_call", "most"), [(-1.0, 1), (1e9, 2)])
def test_at_most_two_calls_are_in_flight_and_one_if_they_are_slow(tmp_path, monkeypatch, slow_call, most):
    dispatched, finished, in_flight, shown = [], set(), [], []

    class Waited:
        """A metric of a call that finishes when it is read."""

        def __init__(self, value):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            finished.add(id(self))
            return np.asarray(self.value)

    def slow_steps(state, key, batch):
        state, metrics = train_steps(state, key, batch)
        metrics["skipped"] = Waited(metrics["skipped"])
        dispatched.append(metrics["skipped"])
        in_flight.append(len(dispatched) - len(finished))
        return state, metrics

    update = loop.tqdm.update
    monkeypatch.setattr(loop.tqdm, "update", lambda bar, n: (shown.append(len(finished)), update(bar, n))[1])
    monkeypatch.setattr(loop, "_SLOW_CALL", slow_call)
    Run(tmp_path, settings(log_every=40, checkpoint_every=40), train_steps=slow_steps)()
    assert max(in_flight) == most
    assert shown == list(range(1, 41))  # the bar counts a step when it has finished


def stop_at(number):
    return lambda batch: signal.raise_signal(signal.SIGTERM) if batch == number else None


@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_leaves_a_checkpoint_of_the_current_step_and_the_run_goes_on_to_the_same_bits(tmp_path, capsys, size):
    whole = Run(tmp_path / "whole", settings(steps_per_call=size))()
    finished, (step, value), metrics = Run(tmp_path / "run", settings(steps_per_call=size), on_batch=stop_at(24))()
    assert not finished
    assert step == 24  # its batch was fetched while step 24, or the call of steps 23 and 24, was in flight
    assert value == expected(range(24))
    assert metrics[-1]["step"] == 24
    assert "stopped at step 24 of 40; the same command resumes from there" in capsys.readouterr().out
    finished, last, metrics = Run(tmp_path / "run", settings(steps_per_call=size))()
    assert finished
    assert last == whole[1]
    assert [entry["step"] for entry in metrics] == [10, 20, 24, 30, 40]


def test_a_picture_is_left_at_once_with_its_step_on_disk(tmp_path):
    begun = []

    def draw(ema, extras, path):
        begun.append(final(tmp_path))
        signal.raise_signal(signal.SIGINT)
        begun.append("not left")

    config = settings(sample_every=15)
    with pytest.raises(SystemExit) as left:
        Run(tmp_path, config, draw=draw)()
    assert left.value.code == PREEMPTED
    assert begun == [(15, expected(range(15)))]  # there before the picture was begun
    assert Run(tmp_path, config)()[1] == (40, expected(range(40)))


@pytest.mark.parametrize("error", [ValueError("3 values are NaN"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_picture_that_fails_ends_nothing(tmp_path, capsys, error):
    def draw(ema, extras, path):
        raise error

    finished, (step, _), _ = Run(tmp_path, settings(sample_every=15), draw=draw)()
    assert finished
    assert step == 40
    printed = capsys.readouterr().out
    assert f"no picture of step 15: {error}" in printed
    assert f"no picture of step 40: {error}" in printed


def test_skipped_steps_are_counted_left_out_of_the_means_and_named_rarely(tmp_path, capsys):
    poisoned = [3, 14, 15, 22, 31]
    finished, (_, value), metrics = Run(tmp_path, poisoned=poisoned)()
    assert finished
    assert [entry["skipped"] for entry in metrics] == [1, 2, 1, 1]
    assert metrics[0]["loss"] == pytest.approx((45 - 3) / 9)
    assert value == expected(sorted(set(range(40)) - set(poisoned)))
    printed = capsys.readouterr().out
    assert "step 4 was skipped (1 so far): batch 3 is nan" in printed
    assert printed.count("was skipped") == 1
    assert "back from" not in printed


POISONED = {13, 14, 15, 27, 28, 29}  # three in a row, twice


def test_a_run_goes_back_and_on_with_the_batches_after_the_bad_ones(tmp_path, capsys):
    run = Run(tmp_path, poisoned=POISONED, goodput=goodput.Goodput(tmp_path / goodput.FILE))
    finished, (step, value), metrics = run()
    assert (finished, step) == (True, 40)
    lines = [json.loads(line) for line in (tmp_path / goodput.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines if "back" in line] == [10, 20]
    assert goodput.read(tmp_path)["steps"] > 0
    assert "3 steps in a row were skipped: back from step 16 to 10" in capsys.readouterr().out
    # Steps 11 to 20 have the batches 16 to 25. Batches 26 to 29 follow; then back to step 20, and on with batch 30.
    assert value == expected([*range(10), *range(16, 26), *range(30, 50)])
    assert [entry["step"] for entry in metrics] == [10, 20, 30, 40]
    assert sum(entry["skipped"] for entry in metrics) == 0  # entries of the steps that were undone are removed


class Killed(BaseException):
    pass


def test_a_killed_run_repeats_skipped_steps_and_returns_to_the_same_bits(tmp_path):
    """It is killed when it fetches batch k, for every k, and continued."""
    whole = Run(tmp_path / "whole", poisoned={5, *POISONED})()[1]
    rest = set(range(50))

    def kill(number):
        if number in rest:
            rest.remove(number)
            raise Killed

    run = Run(tmp_path / "run", poisoned={5, *POISONED}, on_batch=kill)
    for _ in range(100):
        with contextlib.suppress(Killed):
            last = run()
            break
    assert last[1] == whole
    assert not rest & set(range(10))


def test_a_stop_among_skipped_steps_does_not_make_their_state_a_good_one(tmp_path):
    whole = Run(tmp_path / "whole", poisoned=POISONED)()[1]
    Run(tmp_path / "run", poisoned=POISONED, on_batch=stop_at(15))()  # steps 14 and 15 are skipped
    assert final(tmp_path / "run")[0] == 15
    assert Run(tmp_path / "run", poisoned=POISONED)()[1] == whole


def test_a_run_that_does_not_get_further_ends_with_advice(tmp_path):
    run = Run(tmp_path, poisoned=range(15, 1000))
    with pytest.raises(FloatingPointError, match=r"--config.training.learning_rate=0.0003 --allow_changes"):
        run()
    assert final(tmp_path) == (10, expected(range(10)))
    assert max(run.batches) < 15 + (MAX_RETURNS + 1) * (3 + 2) + 2


def test_before_the_first_checkpoint_a_run_goes_back_to_the_start(tmp_path):
    finished, (_, value), _ = Run(tmp_path, poisoned={2, 3, 4})()
    assert finished
    assert value == expected(range(5, 45))


@pytest.mark.parametrize("what", ["json", "events", "checkpoint"])
def test_a_full_disk_ends_the_run_with_one_error(tmp_path, monkeypatch, what):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*args, **kwargs):
        raise full

    if what == "checkpoint":  # such as a quota, which the free space does not show
        monkeypatch.setattr("experiments.checkpoints.write_shards", fail)
    else:
        owner, name = {"json": (metric_log.json, "dumps"), "events": (metric_log.Events, "write")}[what]
        monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="No space left on device"):
        Run(tmp_path)()


def test_the_heldout_loss_is_logged_and_abandoned_by_a_signal(tmp_path):
    calls = []

    def score(ema, extras, stopped):
        calls.append((float(ema), stopped()))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return None if stopped() else {"heldout_loss": 0.5}

    finished, (step, _), metrics = Run(tmp_path, settings(heldout_every=8), heldout=score)()
    assert (finished, step) == (False, 16)
    assert calls == [(expected(range(8)), False), (expected(range(16)), False)]
    assert [("heldout_loss" in entry, entry["step"]) for entry in metrics] == [(True, 8), (False, 10), (False, 16)]


def test_recovery_counts_returns_until_a_further_checkpoint():
    record = Recovery().after([True, False, True, True])
    assert record.in_a_row == 2
    record = record.going_back(20, 10)
    assert record == Recovery(batch_offset=10, returns=1, furthest=20)
    assert record.saved(20).returns == 1
    assert record.saved(21).returns == 0
    assert record.after([True]).saved(21).returns == 1


def test_blame_names_examples_by_index_and_file():
    losses = np.array([1.0, np.inf, np.nan, 3.0])
    assert blame(losses, [4, 2, 0, 1], ["a", "b", "c", "d", "e"]) == (
        "the loss is not finite for examples 2 (c), 0 (a)"
    )
    assert "number 1 of the batch, number 2 of the batch" in blame(losses)
    assert "examples 1: 3, 4: 1" in blame([1.0, 3.0], [4, 1])
    assert blame(np.full(9, np.nan), range(9)).endswith("0, 1, 2, 3, 4 and 4 more")


def test_heldout_losses_are_the_same_each_time_whatever_the_batch_size():
    config = customise(default_config(), backbone={"hidden_size": 8, "depth": 1}, data={"shape": (2,)})
    task = tasks.make_task(config, None)
    params = task.init(jax.random.key(0))
    points = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    dataset = data.Dataset(points, None, (2,), 0)
    scores = [
        heldout.make_heldout(task.loss, task.level_loss, dataset, size, jax.random.key(1), params, None)
        for size in (16, 50)
    ]
    first, again, other = scores[0](params, None), scores[0](params, None), scores[1](params, None)
    assert first == again
    assert first == pytest.approx(other, rel=1e-4)
    assert len(first) == 1 + heldout.NUM_BINS
    bins = [value for name, value in first.items() if "log_snr" in name]
    assert np.average(bins, weights=[7, 7, 6, 6, 6, 6, 6, 6]) == pytest.approx(first["heldout_loss"], rel=1e-5)
    assert scores[0](params, None, lambda: True) is None


@pytest.mark.parametrize("span", ["3", "5:5", "a:b", "7:2"])
def test_a_profile_needs_a_span_of_steps(tmp_path, span):
    with pytest.raises(ValueError, match="--profile must be START:STOP"):
        monitor.profiler(span, tmp_path)


def test_a_profile_covers_its_span(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = monitor.profiler("10:14", tmp_path)
    for step in (0, 5, 10, 12, 15, 20):
        profile(step)
        calls.append(step)
    assert calls == [0, 5, "start", 10, 12, "stop", 15, 20]
