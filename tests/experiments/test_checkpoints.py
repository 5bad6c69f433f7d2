"""Checkpoints: exact round trip, checksums, damage; the check of the work directory; the metric log."""

import json
import os
import struct
import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from experiments import metric_log, runs
from experiments.checkpoints import Checkpoints, checksum


@pytest.fixture
def state():
    return {"w": jnp.arange(1000.0), "step": jnp.array(3, jnp.int32), "half": jnp.ones(4, jnp.bfloat16)}


def test_round_trip_is_exact(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, {"batch_offset": 7})
    checkpoints.wait()
    step, restored, meta = checkpoints.restore(state)
    checkpoints.close()
    assert (step, meta) == (3, {"batch_offset": 7})
    for name, value in state.items():
        np.testing.assert_array_equal(restored[name], value)
        assert restored[name].dtype == value.dtype


def test_no_checkpoint_is_no_error(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(state) is None
    checkpoints.close()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damage_falls_back_to_the_checkpoint_before(tmp_path, state, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.save(2, {**state, "w": state["w"] + 1})
    checkpoints.close()
    files = [path for path in (tmp_path / "checkpoints" / "2" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    if damage == "truncate":
        os.truncate(largest, largest.stat().st_size // 2)
    elif damage == "empty":
        os.truncate(largest, 0)
    else:
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 0x10
        largest.write_bytes(bytes(content))
    checkpoints = Checkpoints(tmp_path)
    step, restored, _ = checkpoints.restore(state)
    assert step == 1
    np.testing.assert_array_equal(restored["w"], state["w"])
    checkpoints.save(2, state)  # its step can be saved again
    checkpoints.wait()
    assert checkpoints.restore(state)[0] == 2
    checkpoints.close()


def test_when_all_are_damaged_nothing_starts_over_silently(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.close()
    for path in (tmp_path / "checkpoints" / "1" / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    checkpoints = Checkpoints(tmp_path)
    for _ in range(2):  # the second attempt fails, too
        with pytest.raises(ValueError, match=r"none of the checkpoints in .* could be read"):
            checkpoints.restore(state)
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_read_only_moves_nothing(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.save(2, state)
    checkpoints.close()
    for path in (tmp_path / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.restore(state)[0] == 1
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* could be read"):
        reader.restore({"renamed": state["w"]})
    reader.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_checksum_sees_a_bit_a_type_and_a_shape():
    zeros = np.zeros(4, np.float32)
    others = [np.array([0, 0, 0, 1e-45], np.float32), np.zeros(4, np.int32), np.zeros((2, 2), np.float32)]
    assert len({checksum(array) for array in (zeros, *others)}) == 4


def test_workdir_of_another_config_is_refused(tmp_path):
    config = ConfigDict({"seed": 0, "training": {"num_steps": 5, "log_every": 1}, "sampler": {"eta": 0.0}})
    runs.open_workdir(tmp_path, config, create=True)
    config.training.log_every = 2
    config.sampler.eta = 1.0
    runs.open_workdir(tmp_path, config, create=True)  # these fields do not affect what is learned
    config.seed = 1
    with pytest.raises(ValueError, match=r"another config \(seed: 0 there, 1 here\)"):
        runs.open_workdir(tmp_path, config, create=True)


def test_tuples_within_tuples_come_back_from_json_as_the_same_config(tmp_path):
    config = ConfigDict({"backbone": {"depths": (0, (1, 2))}})
    runs.open_workdir(tmp_path, config, create=True)
    runs.open_workdir(tmp_path, config, create=False)
    with pytest.raises(ValueError, match=r"backbone.depths: \[0, \[1, 2\]\] there, \[0, \[1, 3\]\] here"):
        runs.open_workdir(tmp_path, ConfigDict({"backbone": {"depths": (0, (1, 3))}}), create=False)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("precious")
    with pytest.raises(ValueError, match=r"is not the folder of a run, it holds metrics\.jsonl"):
        runs.open_workdir(tmp_path, ConfigDict({"seed": 0}), create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_metric_log_removes_entries_after_the_checkpoint_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 0.5}\n{"step": 30, "lo')
    log = metric_log.MetricLog(tmp_path, start_step=10)
    log.write(20, {"loss": 0.25})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 0.25},
    ]


def test_a_log_is_passed_to_sinks_and_leaves_out_what_is_not_finite(tmp_path):
    found = []
    log = metric_log.MetricLog(tmp_path, 0, [lambda step, metrics: found.append((step, metrics))])
    log.write(1, {"loss": 1.0, "other": float("nan")})
    assert metric_log.read(log.path) == [{"step": 1, "loss": 1.0, "other": None}]
    assert found[0][0] == 1
    assert found[0][1]["loss"] == 1.0


def test_tensorboard_events_can_be_read_back(tmp_path):
    """Record by record: length, checksum, event, checksum."""
    log = metric_log.MetricLog(tmp_path, start_step=4)
    log.write(5, {"loss": 0.25, "other": float("inf")})
    log.text("config", metric_log.indented("a = 1\nb = 2"))
    Image.new("L", (3, 2), 7).save(tmp_path / "a.png")
    log.picture("samples", 5, tmp_path / "a.png")
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        assert struct.unpack("<I", content[8:12]) == (masked_crc32c(content[:8]),)
        content = content[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (5, event_pb2.SessionLog.START)
    values = [(event.step, value) for event in events[2:] for value in event.summary.value]
    assert [(step, value.tag.split("/")[0]) for step, value in values] == [(5, "loss"), (0, "config"), (5, "samples")]
    assert values[0][1].simple_value == 0.25
    assert b"a = 1" in values[1][1].tensor.string_val[0]
    assert (values[2][1].image.width, values[2][1].image.height) == (3, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, state, value):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    with pytest.raises(FloatingPointError, match=r"the state of step 2 is not finite \(in \['half'\]\)"):
        checkpoints.save(2, {**state, "half": state["half"].at[1].set(value)})
    assert checkpoints.restore(state).step == 1
    checkpoints.close()


def test_a_checkpoint_is_chosen_by_its_meta_and_later_ones_can_be_discarded(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state, {"good": step < 3})
    checkpoints.wait()
    assert checkpoints.restore(state).step == 3
    assert checkpoints.restore(state, lambda meta: meta["good"]).step == 2
    assert checkpoints.restore(state, lambda meta: False) is None
    checkpoints.discard_after(2)
    assert checkpoints.restore(state).step == 2
    checkpoints.save(3, state)
    checkpoints.close()


def test_without_space_on_the_disk_nothing_is_begun(tmp_path, state, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=2**20 + 4000))
    with pytest.raises(OSError, match=r"the checkpoint of step 2 needs 1 MiB, but the disk of .* has 1 MiB free"):
        checkpoints.save(2, state)
    checkpoints.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_an_error_of_the_disk_names_the_file(tmp_path):
    log = metric_log.MetricLog(tmp_path)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl could not be written: .*Is a directory"):
        log.write(1, {"loss": 1.0})
