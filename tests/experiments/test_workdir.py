"""Work directories: configs that belong to them, changes, recorded data and versions, damaged files."""

import json

import jax
import numpy as np
import pytest

from configs import autoencoder, classifier, ddpm_digits, ddpm_images, edm, flow, latent
from diffusers_fn.from_config.defaults import customise
from experiments import data, workdir
from experiments.workdir import check_data, open_workdir, read_config


def small(**sections):
    config = customise(ddpm_digits.get_config(), backbone={"hidden_size": 8, "depth": 1})
    return customise(config, **sections)


def record(images, heldout, class_names=None):
    def part(images):
        images = np.asarray(images, np.float32)[:, None]
        return data.Dataset(images, np.zeros(len(images), np.int32), (1,), 1, class_names=class_names)

    return data.describe(part(images), part(heldout))


def changes(folder):
    path = folder / "changes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("module", [ddpm_digits, edm, flow, latent, autoencoder, classifier], ids=lambda m: m.__name__)
def test_a_config_comes_back_from_its_work_directory(tmp_path, module):
    config = module.get_config()
    open_workdir(tmp_path, config, create=True)
    held = read_config(tmp_path)
    assert held.to_dict() == config.to_dict()
    assert held.is_locked
    for name, section in config.items():
        if hasattr(section, "items"):
            for field in section:  # overrides on top are of the same types
                assert held[name].get_type(field) == section.get_type(field), f"{name}.{field}"


@pytest.mark.parametrize(
    ("change", "flag", "fixed"),
    [
        ({"training": {"log_every": 7}}, False, False),
        ({"sampler": {"name": "heun"}}, False, False),
        ({"data": {"path": "/elsewhere"}}, False, False),  # the recorded data decide
        ({"training": {"num_steps": 4_000}}, True, False),
        ({"training": {"learning_rate": 1e-4}}, True, False),
        ({"training": {"lr_schedule": "constant"}}, True, False),
        ({"training": {"batch_size": 64}}, True, False),
        ({"seed": 3}, True, False),
        ({"loss": {"weight": "min_snr"}}, True, False),
        ({"data": {"flip": True}}, True, False),
        ({"backbone": {"hidden_size": 16}}, True, True),
        ({"parameterization": "v"}, True, True),
        ({"noise_schedule": {"beta_schedule": "cosine"}}, True, True),
        ({"training": {"optimizer": "adamw"}}, True, True),
        ({"training": {"accumulation": 2}}, True, True),
        ({"training": {"grad_clip": 0.0}}, True, True),  # another state of the optimizer
        ({"loss": {"time_sampler": "loss_second_moment"}}, True, True),  # another state
    ],
    ids=str,
)
def test_what_may_change_in_a_run(tmp_path, capsys, change, flag, fixed):
    open_workdir(tmp_path, small(), create=True)
    other = small(**change)
    before = contents(tmp_path)
    if not flag:
        open_workdir(tmp_path, other, create=False)
        assert contents(tmp_path) == before  # only training records
    else:
        with pytest.raises(ValueError, match=r"holds a run of another config \(.* there, .* here\): .*--workdir"):
            open_workdir(tmp_path, other, create=True)
        assert contents(tmp_path) == before
    if fixed:
        with pytest.raises(ValueError, match=f"--init_from={tmp_path} starts a new run"):
            open_workdir(tmp_path, other, create=True, allow_changes=True)
        assert contents(tmp_path) == before
        return
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    open_workdir(tmp_path, other, create=True, allow_changes=flag)
    assert read_config(tmp_path).to_dict() == other.to_dict()
    (entry,) = changes(tmp_path)
    (name,) = entry["changes"]
    assert entry["step"] == 20
    assert f"changed from step 20 on: {name}: " in capsys.readouterr().out
    open_workdir(tmp_path, other, create=True)  # the change is part of the run now
    assert len(changes(tmp_path)) == 1


def test_steps_per_call_must_divide_the_step_at_which_a_run_continues(tmp_path):
    open_workdir(tmp_path, small(), create=True)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"continues at step 20, which must be a multiple of .*; got 3"):
        open_workdir(tmp_path, small(training={"steps_per_call": 3}), create=True, allow_changes=True)
    open_workdir(tmp_path, small(training={"steps_per_call": 5}), create=True, allow_changes=True)


def test_one_field_may_stand_for_both_numbers_of_classes(tmp_path):
    config = small()
    count = config.backbone.num_classes or config.data.num_classes
    config.backbone.num_classes, config.data.num_classes = count, None
    open_workdir(tmp_path, config, create=True)
    config.backbone.num_classes, config.data.num_classes = None, count
    open_workdir(tmp_path, config, create=False)
    config.data.num_classes = count + 1
    with pytest.raises(ValueError, match=r"backbone.num_classes: 10 there, 11 here"):
        open_workdir(tmp_path, config, create=False)


def test_a_run_of_a_config_with_repeated_sizes_continues_without_them(tmp_path):
    """Configs stated the size three times; a run of one is that of data.shape alone."""
    config = customise(ddpm_images.get_config(), data={"image_size": 32, "resize": "none"}, backbone={"image_size": 32})
    open_workdir(tmp_path, config, create=True)
    open_workdir(tmp_path, ddpm_images.get_config(), create=True)
    other = customise(ddpm_images.get_config(), data={"resize": "stretch"})
    with pytest.raises(ValueError, match=r"data.resize: crop there, stretch here"):
        open_workdir(tmp_path, other, create=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ('{"seed": 0, "training": {"num_st', "line 1"),
        ("not json", "Expecting value"),
        ("[1, 2]", r"it holds \[1, 2\]"),
        ("{}", "it has no section backbone, data"),
        ("\x00\x00", "Expecting value"),
    ],
)
def test_a_damaged_config_names_file_and_remedy(tmp_path, text, reason):
    open_workdir(tmp_path, small(), create=True)
    (tmp_path / "config.json").write_text(text)
    message = rf"{tmp_path}/config.json is damaged \(.*{reason}.*\): restore it .* --allow_changes"
    for create in (True, False):
        with pytest.raises(ValueError, match=message):
            open_workdir(tmp_path, small(), create=create)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)
    assert (tmp_path / "config.json").read_text() == text
    open_workdir(tmp_path, small(), create=True, allow_changes=True)  # the remedy
    assert read_config(tmp_path).to_dict() == small().to_dict()


def test_a_field_of_a_wrong_type_is_damage(tmp_path):
    open_workdir(tmp_path, small(), create=True)
    held = json.loads((tmp_path / "config.json").read_text())
    held["training"]["num_steps"] = "many"
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"config.json is damaged \(training.num_steps: "):
        read_config(tmp_path)


def test_a_run_of_an_earlier_version_did_what_there_was(tmp_path):
    open_workdir(tmp_path, small(), create=True)
    held = json.loads((tmp_path / "config.json").read_text())
    del held["training"]["ema_warmup"], held["data"]["background"], held["training"]["max_skipped"]
    (tmp_path / "config.json").write_text(json.dumps(held))
    config = read_config(tmp_path)
    assert (config.training.ema_warmup, config.data.background) == ("none", (255, 255, 255))
    open_workdir(tmp_path, config, create=True)
    with pytest.raises(ValueError, match=r"\(training.ema_warmup: none there, ratio here\)"):
        open_workdir(tmp_path, small(), create=True)


def test_other_data_are_refused_or_accepted_by_flag(tmp_path, capsys):
    first = record(np.arange(40), np.arange(40, 50))
    open_workdir(tmp_path, small(), create=True, record=first)
    open_workdir(tmp_path, small(), create=True, record=record(np.arange(40), np.arange(40, 50)))
    before = contents(tmp_path)

    moved = record(np.arange(10, 50), np.arange(10))  # the same examples, another split
    other = small(training={"log_every": 3})
    with pytest.raises(ValueError, match=r"trained on other data: .*10 of (the )?10 held-out .*--allow_changes"):
        open_workdir(tmp_path, other, create=True, record=moved)
    with pytest.raises(ValueError, match=r"10 of (the )?10 held-out"):
        check_data(tmp_path, moved, train=False)
    assert contents(tmp_path) == before  # a refusal changes nothing, the free field included

    check_data(tmp_path, moved, allow_changes=True, train=False)  # an evaluation: the run's data stay as they are
    assert {name: contents(tmp_path)[name] for name in before} == before
    open_workdir(tmp_path, other, create=True, allow_changes=True, record=moved)
    assert "10 held-out" in capsys.readouterr().out
    assert [list(entry["changes"]) for entry in changes(tmp_path)] == [["data"], ["data"], ["training.log_every"]]
    open_workdir(tmp_path, other, create=True, record=moved)
    with pytest.raises(ValueError, match="trained on other data"):
        open_workdir(tmp_path, other, create=True, record=first)


def test_damaged_records_of_the_data_are_named(tmp_path):
    open_workdir(tmp_path, small(), create=True, record=record([1.0, 2.0], [3.0]))
    (tmp_path / "data_hashes.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"data.json or data_hashes.npz is damaged .*: delete both"):
        open_workdir(tmp_path, small(), create=True, record=record([1.0, 2.0], [3.0]))
    for name in ("data.json", "data_hashes.npz"):
        (tmp_path / name).unlink()
    open_workdir(tmp_path, small(), create=True, record=record([1.0, 2.0], [3.0]))
    assert (tmp_path / "data_hashes.npz").exists()


def test_names_of_classes(tmp_path):
    assert workdir.class_names(tmp_path) is None
    check_data(tmp_path, record([1.0], [2.0], class_names=("cat",)))
    assert workdir.class_names(tmp_path) == ("cat",)


def test_versions_are_recorded_at_each_start(tmp_path):
    for _ in range(2):
        workdir.record_versions(tmp_path)
    first, second = (json.loads(line) for line in (tmp_path / "versions.jsonl").read_text().splitlines())
    assert first["jax"] == jax.__version__
    assert first["numpy"] == np.__version__
    assert {"python", "jaxlib", "flax", "optax", "diffusers_fn", "device", "commit", "local_changes", "command"} <= set(
        first
    )
    assert {**first, "time": ""} == {**second, "time": ""}
