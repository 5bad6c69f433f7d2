"""The matrix of faults: what it compares, and some of its rows."""

import dataclasses
import json
import random

import jax
import pytest

import diffusers_fn as dfn
from configs import ddpm_toy2d
from diffusers_fn.from_config.defaults import customise
from experiments import states
from experiments.benchmarks import fault_matrix
from experiments.benchmarks.fault_results import Counts, compare
from experiments.benchmarks.fault_runs import Settings, newest, unfinished
from experiments.checkpoints import Checkpoints
from experiments.workdir import open_workdir


@pytest.fixture(scope="module")
def state():
    config = customise(ddpm_toy2d.get_config(), backbone={"name": "mlp", "hidden_size": 8, "depth": 1})
    return config, states.new_state(config, dfn.build(config).init, jax.random.key(5), None)


def run_of(folder, config, state, loss=0.5):
    open_workdir(folder, config, create=True)
    checkpoints = Checkpoints(folder)
    checkpoints.save(600, state)
    checkpoints.close()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 600, "loss": loss}) + "\n")
    return folder


def failures_of(workdir, whole):
    counts = Counts()
    compare(counts, workdir, whole)
    return counts["failures"]


def test_a_bit_of_the_state_and_a_loss_are_compared(tmp_path, state):
    config, state = state
    whole = run_of(tmp_path / "whole", config, state)
    assert failures_of(run_of(tmp_path / "same", config, state), whole) == []
    other = dataclasses.replace(state, ema=jax.tree.map(lambda leaf: leaf * (1 + 2**-23), state.ema))
    (failure,) = failures_of(run_of(tmp_path / "state", config, other), whole)
    assert "other bits than whole in .ema" in failure
    (failure,) = failures_of(run_of(tmp_path / "loss", config, state, loss=0.25), whole)
    assert "other losses" in failure


def test_the_losses_of_an_entry_that_a_stop_has_split_are_averaged(tmp_path, state):
    whole = run_of(tmp_path / "whole", *state)
    for loss, failures in ((0.625, 0), (0.5, 1)):
        split = run_of(tmp_path / f"split {loss}", *state, loss=loss)
        entries = [{"step": 200, "loss": 0.25}, {"step": 600, "loss": loss}]
        (split / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        assert len(failures_of(split, whole)) == failures


def test_a_checkpoint_that_is_not_resumed_from_is_counted_as_lost(tmp_path):
    class Resumed:
        def resumed_at(self):
            return 30

    counts = Counts()
    fault_matrix._check_resumed(counts, Resumed(), 30)
    assert (counts["lost"], counts["failures"]) == (0, [])
    fault_matrix._check_resumed(counts, Resumed(), 50)
    assert counts["lost"] == 20
    assert counts["failures"] == ["resumed at step 30, but checkpoint 50 was complete"]


def test_complete_and_unfinished_checkpoints_are_distinguished(tmp_path):
    assert (newest(tmp_path), unfinished(tmp_path)) == (0, 0)
    for name in ("10", "20", ".30.tmp", ".5.deleted"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert (newest(tmp_path), unfinished(tmp_path)) == (20, 30)


@pytest.mark.long
def test_kills_and_a_full_disk_change_no_bit(tmp_path):
    settings = Settings(tmp_path, num_steps=200)
    for row, kills in (("one_process_killed", 2), ("disk_full", 1)):
        counts = fault_matrix.ROWS[row](settings, random.Random(0), kills)
        assert counts["failures"] == []
        assert counts["faults"] == kills
        assert counts["lost"] == 0
