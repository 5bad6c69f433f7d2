"""Where the wall time of a run went: buckets that sum to it, over restarts and returns to a checkpoint."""

import json

import jax
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise
from experiments import goodput, metric_log
from experiments.compare_runs import compare_runs
from experiments.goodput import Goodput
from experiments.train import train


class Clock:
    """A clock that a test advances."""

    now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


def steps(clock, run, number, seconds, step):
    """Trains `number` steps of some seconds each, and records the last."""
    with run.bucket("steps"):
        clock.advance(number * seconds)
        run.record(step + number)


def test_buckets_and_nested_buckets_sum_to_the_wall_time():
    clock = Clock()
    run = Goodput(age=3.0, clock=clock)
    clock.advance(2.0)
    with run.bucket("compilation"):
        clock.advance(7.0)
    run.record(0)
    with run.bucket("steps"):
        clock.advance(10.0)
        with run.bucket("checkpoints"):
            clock.advance(1.0)
        clock.advance(4.0)
        run.move(1.5, "steps", "data")
        with run.bucket("evaluation"):
            clock.advance(0.5)
        run.record(20)
    wanted = {
        "startup": 5,
        "compilation": 7,
        "steps": 12.5,
        "data": 1.5,
        "checkpoints": 1,
        "evaluation": 0.5,
        "lost": 0,
    }
    assert run.total.seconds == wanted
    assert sum(wanted.values()) == 27.5 == 3.0 + clock.now - 100.0
    assert goodput.share(wanted) == 12.5 / 27.5
    run.move(1e9, "data", "steps")  # never more than there is
    run.record(20)
    assert run.total.seconds["data"] == 0
    assert sum(run.total.seconds.values()) == 27.5


def test_steps_that_a_killed_run_repeats_are_lost(tmp_path):
    path, clock = tmp_path / goodput.FILE, Clock()
    run = Goodput(path, clock=clock)
    run.record(0)
    steps(clock, run, 10, 1.0, 0)  # a checkpoint
    steps(clock, run, 5, 2.0, 10)  # killed here
    with path.open("a") as file:
        file.write('{"step": 17, "sess')
    clock.advance(1000.0)  # between two processes
    again = Goodput(path, age=4.0, clock=clock)
    again.record(10)
    steps(clock, again, 20, 1.0, 10)
    total = again.total.seconds
    assert total == {**dict.fromkeys(goodput.BUCKETS, 0.0), "startup": 4.0, "steps": 30.0, "lost": 10.0}
    assert goodput.read(tmp_path) == total
    third = Goodput(path, clock=clock)
    third.record(0)  # all checkpoints were damaged
    assert third.total.seconds["lost"] == 40.0
    assert third.total.seconds["steps"] == 0.0


def test_a_return_to_a_checkpoint_loses_the_steps_after_it(tmp_path):
    clock = Clock()
    run = Goodput(tmp_path / goodput.FILE, clock=clock)
    run.record(0)
    steps(clock, run, 10, 1.0, 0)
    steps(clock, run, 10, 1.0, 10)
    with run.bucket("steps"):
        clock.advance(3.0)
        run.record(10, back=True)
        clock.advance(5.0)
        run.record(15)
    assert run.total.seconds["lost"] == 13.0
    assert run.total.seconds["steps"] == 15.0
    assert goodput.read(tmp_path) == run.total.seconds


@pytest.mark.usefixtures("signal_handlers")
def test_a_run_and_its_restart(tmp_path, capsys):
    points = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    np.savez(tmp_path / "points.npz", images=points)
    config = customise(
        dfn.default_config(),
        data={"name": "arrays", "path": str(tmp_path / "points.npz"), "shape": (2,), "normalize": False},
        backbone={"hidden_size": 8, "depth": 1},
        training={"num_steps": 4, "warmup_steps": 0, "batch_size": 8, "sample_every": 0, "checkpoint_every": 2},
        sampler={"num_inference_steps": 2, "clip_denoised": False},
    )
    config.training.peak_flops = 1e9
    train(config, tmp_path / "run")
    assert "goodput " in capsys.readouterr().out
    config.training.num_steps = 6
    train(config, tmp_path / "run", allow_changes=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / goodput.FILE).read_text().splitlines()]
    assert len({line["session"] for line in lines}) == 2
    for line in lines:
        wall = sum(line[name] for name in goodput.BUCKETS if name != "lost")
        assert wall == pytest.approx(line["wall"], abs=0.01)
    total = goodput.read(tmp_path / "run")
    assert total["lost"] == 0.0
    assert min(total[name] for name in ("startup", "compilation", "steps", "checkpoints", "evaluation")) > 0
    last = metric_log.read(tmp_path / "run" / "metrics.jsonl")[-1]
    assert 0 < last["goodput"] < 1
    # Products of the network 2 -> 8 -> ... -> 2 and of its embeddings, forward and backward, per example.
    per_step = last["flops_per_second"] / last["steps_per_second"]
    assert per_step == pytest.approx(_flops(config), rel=1e-6)
    assert last["flops_utilization"] == pytest.approx(last["flops_per_second_per_device"] / 1e9)
    compare_runs([tmp_path / "run"] * 2, tmp_path / "runs.png")
    assert "lost work" in capsys.readouterr().out


def _flops(config):
    """FLOPs of a training step's products: forward, gradients of kernels, gradients of inputs but those of the data."""
    params = jax.eval_shape(dfn.build(config).init, jax.random.key(0))
    kernels = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    sizes = {name: leaf.size for name, leaf in kernels.items() if leaf.ndim == 2}
    first = sizes["['dense_in']['kernel']"] + sizes["['embedding']['time_0']['kernel']"]
    return 2 * config.training.batch_size * (3 * sum(sizes.values()) - first)
