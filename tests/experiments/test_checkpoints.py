"""Checkpoints: exact, on any mesh, verified, in the background. The check of the work directory; the metric log."""

import json
import os
import struct
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from experiments import checkpoints as writer
from experiments import metric_log, runs
from experiments.checkpoints import Checkpoints
from experiments.orbax_checkpoints import checksum


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


def flip(path, position, bit=4):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "removed": lambda path: path.unlink(),
}
FILES = ("checkpoint.json", "shards-00000.json", "shards-00000.safetensors")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_checkpoint_before(tmp_path, state, caplog, damage, file):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.save(2, {**state, "w": state["w"] + 1})
    checkpoints.close()
    DAMAGE[damage](tmp_path / "checkpoints" / "2" / file)
    checkpoints = Checkpoints(tmp_path)
    step, restored, _ = checkpoints.restore(state)
    assert step == 1
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert "Checkpoint 2 is damaged, using checkpoint 1: " in caplog.text
    assert (tmp_path / "damaged" / "2").is_dir()
    checkpoints.save(2, state)  # its step can be saved again
    checkpoints.wait()
    assert checkpoints.restore(state)[0] == 2
    checkpoints.close()


@pytest.mark.parametrize("file", FILES)
def test_no_flipped_bit_changes_what_is_restored(tmp_path, file):
    """Each byte of each file: either the checkpoint before is taken, or the values are those saved."""
    older, newer = {"w": jnp.arange(6.0).reshape(2, 3)}, {"w": jnp.arange(6.0).reshape(2, 3) - 7}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, older, {"batch_offset": 0})
    checkpoints.save(2, newer, {"batch_offset": 35})
    checkpoints.close()
    reader, path = Checkpoints(tmp_path, read_only=True), tmp_path / "checkpoints" / "2" / file
    taken = []
    for position in range(path.stat().st_size):
        flip(path, position, position % 8)
        step, restored, meta = reader.restore(newer)
        flip(path, position, position % 8)
        np.testing.assert_array_equal(restored["w"], {1: older, 2: newer}[step]["w"])
        assert meta == {1: {"batch_offset": 0}, 2: {"batch_offset": 35}}[step]
        taken.append(step)
    assert taken.count(1) > 0.6 * len(taken)  # the others are spaces
    assert reader.restore(newer)[0] == 2


def test_when_all_are_damaged_nothing_starts_over_silently(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.close()
    os.truncate(tmp_path / "checkpoints" / "1" / "checkpoint.json", 0)
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
    os.truncate(tmp_path / "checkpoints" / "2" / "checkpoint.json", 0)
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.restore(state)[0] == 1
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* could be read"):
        reader.restore({"renamed": state["w"]})
    reader.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def held(tmp_path):
    return sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())


def test_permanent_checkpoints_are_kept_beside_the_newest(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=20)
    for step in range(5, 66, 5):
        checkpoints.save(step, state)
    checkpoints.close()
    assert held(tmp_path) == [20, 40, 60, 65]


def mesh(data, fsdp, tensor):
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return Mesh(devices, ("data", "fsdp", "tensor"))


SPECS = {"w": P("fsdp", "tensor"), "b": P(("data", "fsdp")), "half": P(None, "tensor"), "step": P()}
MESHES = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1)]


def laid_out(shape):
    return {name: NamedSharding(mesh(*shape), spec) for name, spec in SPECS.items()}


@pytest.mark.parametrize("saved", MESHES[:4], ids=str)
def test_a_state_is_restored_onto_any_mesh_and_number_of_devices(tmp_path, saved):
    values = {
        "w": np.arange(16 * 6, dtype=np.float32).reshape(16, 6),
        "b": np.arange(8, dtype=np.int32),
        "half": np.arange(12).reshape(3, 4).astype(jnp.bfloat16),
        "step": np.int32(5),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, jax.device_put(values, laid_out(saved)))
    checkpoints.wait()
    for restored in MESHES:
        shardings = laid_out(restored)
        like = {
            name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=shardings[name])
            for name, each in values.items()
        }
        found = checkpoints.restore(like).state
        for name, value in values.items():
            assert found[name].sharding == shardings[name]
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(np.asarray(found[name]), value)
    on_host = checkpoints.restore(values).state
    assert all(isinstance(each, np.ndarray) for each in on_host.values())
    jax.tree.map(np.testing.assert_array_equal, on_host, values)
    checkpoints.close()


def test_a_damaged_shard_is_found_on_every_mesh(tmp_path):
    """Also by devices whose own part lies in another place of the shard."""
    value = np.arange(64, dtype=np.float32).reshape(8, 8)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"w": jax.device_put(value, NamedSharding(mesh(1, 2, 1), P("fsdp")))})
    checkpoints.close()
    path = tmp_path / "checkpoints" / "2" / "shards-00000.safetensors"
    flip(path, path.stat().st_size - 1)
    reader = Checkpoints(tmp_path, read_only=True)
    for shape, spec in (((1, 8, 1), P("fsdp")), ((1, 1, 2), P(None, "tensor")), ((1, 1, 1), P())):
        like = {"w": jax.ShapeDtypeStruct((8, 8), np.float32, sharding=NamedSharding(mesh(*shape), spec))}
        assert reader.restore(like).step == 1


def test_a_save_returns_before_it_writes_and_the_state_may_be_donated(tmp_path, monkeypatch):
    begin, write = threading.Event(), writer.write_shards
    monkeypatch.setattr(writer, "write_shards", lambda *args: begin.wait(60) and write(*args))
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    sharding = NamedSharding(mesh(1, 8, 1), P("fsdp"))
    state = {"w": jax.device_put(np.arange(4096, dtype=np.float32), sharding)}
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(number, state)
        for _ in range(3):
            state = step(state)
        assert not (tmp_path / "checkpoints" / str(number)).exists()
        begin.set()
        checkpoints.wait()
        begin.clear()
        found = checkpoints.restore(state)
        assert found.step == number
        np.testing.assert_array_equal(found.state["w"], np.arange(4096) + 3 * (number - 1))
    checkpoints.close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_reported_and_nothing_of_it_is_left(tmp_path, state, value):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.save(2, {**state, "half": state["half"].at[1].set(value)})
    with pytest.raises(FloatingPointError, match=r"the state of step 2 is not finite \(in half\) and was not saved"):
        checkpoints.wait()
    assert held(tmp_path) == [1]
    checkpoints.save(2, state)  # the thread and the memory are in order
    checkpoints.close()
    assert held(tmp_path) == [1, 2]


def test_without_memory_for_a_copy_the_state_is_written_at_once(tmp_path, state, monkeypatch):
    def full(tree):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._snapshots, "take", full)
    checkpoints.save(3, state)
    assert held(tmp_path) == [3]
    np.testing.assert_array_equal(checkpoints.restore(state).state["w"], state["w"])


def test_what_a_killed_process_has_left_is_removed(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.close()
    for name in (".2.tmp", ".0.deleted", "2.orbax-checkpoint-tmp-7"):
        (tmp_path / "checkpoints" / name / "sub").mkdir(parents=True)
    assert Checkpoints(tmp_path, read_only=True).restore(state).step == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    assert Checkpoints(tmp_path).restore(state).step == 1
    assert held(tmp_path) == [1]


def test_a_full_disk_is_one_error_and_the_checkpoints_before_stay(tmp_path, state, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    checkpoints.save(2, state)
    with pytest.raises(OSError, match=r"is the disk full.*that of step 2 needs 1 MiB, and 0 MiB are free"):
        checkpoints.close()
    assert held(tmp_path) == [1]
    assert checkpoints.restore(state).step == 1


def saved_by_orbax(workdir, step, state, meta):
    """As the versions before sharded checkpoints saved."""
    manager = ocp.CheckpointManager(workdir / "checkpoints", options=ocp.CheckpointManagerOptions(create=True))
    state = jax.tree.map(np.asarray, state)
    kept = ocp.args.JsonSave({"checksum": checksum(state), "meta": meta})
    manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=kept))
    manager.close()


def test_checkpoints_of_older_versions_are_restored_and_verified(tmp_path, state):
    saved_by_orbax(tmp_path, 3, state, {"batch_offset": 7})
    saved_by_orbax(tmp_path, 4, {**state, "w": state["w"] + 1}, {"batch_offset": 7})
    sharding = NamedSharding(mesh(1, 8, 1), P("fsdp"))
    like = {**state, "w": jax.ShapeDtypeStruct((1000,), np.float32, sharding=sharding)}
    files = [path for path in (tmp_path / "checkpoints" / "4" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    flip(largest, largest.stat().st_size // 2)
    checkpoints = Checkpoints(tmp_path)
    step, restored, meta = checkpoints.restore(like)
    assert (step, meta) == (3, {"batch_offset": 7})
    assert restored["w"].sharding == sharding
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    checkpoints.save(4, state)
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).restore(like).step == 4


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


def test_an_error_of_the_disk_names_the_file(tmp_path):
    log = metric_log.MetricLog(tmp_path)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl could not be written: .*Is a directory"):
        log.write(1, {"loss": 1.0})
