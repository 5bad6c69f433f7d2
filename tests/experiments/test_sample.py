"""Drawing samples: choice of parameters, classes by name, interruptions, without the data."""

import json
import os

import jax
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise
from experiments import data, metrics, provenance, runs, states, tasks, trained
from experiments.evaluate import asked_labels, evaluate
from experiments.parts import Parts
from experiments.sample import choose_labels, read_shape, sample
from experiments.train import train

pytestmark = pytest.mark.usefixtures("signal_handlers")


NAMES = ["ant", "bee", "cat", "dog", "eel"]


def tiny(path, **sections):
    """A run on 60 points of standard deviation 3 in four of five classes, whose class 3 has no example."""
    config = customise(
        dfn.default_config(),
        data={"name": "arrays", "path": str(path), "shape": (2,), "normalize": False, "num_classes": 5},
        backbone={"hidden_size": 8, "depth": 1, "num_classes": 5},
        training={"num_steps": 3, "warmup_steps": 0, "batch_size": 16, "sample_every": 0, "checkpoint_every": 3},
        sampler={"num_inference_steps": 3, "clip_denoised": False},
        evaluation={"num_samples": 30, "batch_size": 8},
    )
    return customise(config, **sections)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns (config, workdir) of a run whose data no longer exist."""
    root = tmp_path_factory.mktemp("points")
    points = 3.0 * np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    labels = np.array([0, 1, 2, 4])[np.arange(60) % 4]
    np.savez(root / "points.npz", images=points, labels=labels, class_names=NAMES)
    config = tiny(root / "points.npz")
    train(config, root / "run")
    os.remove(root / "points.npz")
    return config, root / "run"


def drawn(folder):
    with np.load(folder / "samples.npz") as held:
        return dict(held)


def interrupt_after(monkeypatch, batches):
    save, saved = Parts.save, []

    def save_and_stop(self, start, samples):
        save(self, start, samples)
        saved.append(start)
        if len(saved) == batches:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "save", save_and_stop)


def test_an_interrupted_command_continues_to_the_same_samples(run, tmp_path, monkeypatch, capsys):
    config, workdir = run
    options = {"num_samples": 11, "batch_size": 4}
    sample(config, workdir, output=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(SystemExit) as end:
            sample(config, workdir, output=tmp_path / "parts", **options)
    assert end.value.code == 75
    assert "8 of 11 samples are kept" in capsys.readouterr().out
    for other in ({"seed": 1}, {"params": "raw"}, {"num_samples": 12}, {"labels": ["1"]}):
        with pytest.raises(ValueError, match=f"samples of another command .*{next(iter(other))}"):
            sample(config, workdir, output=tmp_path / "parts", **{**options, **other})
    with pytest.raises(ValueError, match=r"sampler.eta': 0.5|overrides: "):
        sample(customised(config, sampler={"eta": 0.5}), workdir, output=tmp_path / "parts", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)  # only one batch is left
        sample(config, workdir, output=tmp_path / "parts", **options)
    whole, continued = drawn(tmp_path / "whole"), drawn(tmp_path / "parts")
    assert whole["samples"].shape == (11, 2)
    for name in whole:
        np.testing.assert_array_equal(continued[name], whole[name])
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "samples.json",
        "samples.npz",
        "samples.png",
    ]


def customised(config, **sections):
    return customise(config.copy_and_resolve_references(), **sections)


def test_raw_and_averaged_parameters_are_chosen_and_recorded(run, tmp_path):
    config, workdir = run
    changed = customised(config, sampler={"eta": 0.5})
    for params in ("ema", "raw"):
        sample(changed, workdir, num_samples=5, params=params, output=tmp_path / params)
        about = json.loads((tmp_path / params / "samples.json").read_text())
        assert (about["step"], about["params"], about["overrides"]) == (3, params, {"sampler.eta": 0.5})
        assert about["data_range"] is None
        _, networks, _ = trained.load_trained(config, workdir, params)
        like = states.state_like(config, dfn.build(config).init)
        _, state = states.load_state(config, workdir, like)
        wanted = state.ema if params == "ema" else state.params
        jax.tree.map(np.testing.assert_array_equal, networks.own, wanted)
    assert np.abs(drawn(tmp_path / "ema")["samples"] - drawn(tmp_path / "raw")["samples"]).max() > 0
    with pytest.raises(ValueError, match="median"):
        trained.load_trained(config, workdir, "median")


def test_classes_are_chosen_by_name(run, tmp_path, capsys):
    config, workdir = run
    names = NAMES
    assert choose_labels(["dog", "0"], 5, 4, names).tolist() == [3, 0, 3, 0]
    assert choose_labels(["1"], 3, 1, ["1", "2", "3"]).tolist() == [0]  # a name is looked up first
    assert choose_labels(None, 5, 4, names, absent=[1, 3]).tolist() == [
        0,
        2,
        4,
        0,
    ]  # classes without examples are left out
    with pytest.raises(ValueError, match="no class cow: the classes are ant, bee, cat, dog, eel"):
        choose_labels(["ant", "cow"], 5, 4, names)
    with pytest.raises(ValueError, match=r"must lie in \[0, 4\]; got 5"):
        choose_labels(["5"], 5, 4, names)
    sample(config, workdir, num_samples=4, labels=["eel", "bee"], output=tmp_path)
    assert "classes: bee (1), eel (4)" in capsys.readouterr().out
    assert drawn(tmp_path)["labels"].tolist() == [4, 1, 4, 1]
    assert drawn(tmp_path)["class_names"].tolist() == names
    assert json.loads((tmp_path / "samples.json").read_text())["class_names"] == names
    sample(config, workdir, num_samples=4, output=tmp_path / "all")
    assert drawn(tmp_path / "all")["labels"].tolist() == [0, 1, 2, 4]  # there was no dog


def test_no_row_is_drawn_of_a_class_without_examples(run):
    config, _ = run
    labels = np.array([0, 1, 2, 4] * 3, np.int32)
    dataset = data.Dataset(np.zeros((12, 2), np.float32), labels, (2,), 5)
    assert np.unique(tasks.grid_labels(config, dataset)).tolist() == [0, 1, 2, 4]
    assert np.unique(asked_labels(config, dataset, 8), return_counts=True)[1].tolist() == [2, 2, 2, 2]
    assert tasks.grid_labels(customised(config, backbone={"num_classes": 0}), dataset) is None


def test_classes_set_with_the_data_condition_the_network(run):
    config = customised(run[0], data={"num_classes": 3}, backbone={"num_classes": None})
    assert trained.sampled_classes(config) == 3


def test_evaluate_continues_and_clips_nothing(run, tmp_path, monkeypatch):
    config, workdir = run
    draws = 3.0 * np.random.default_rng(1).normal(size=(2, 40, 2)).astype(np.float32)
    train_split, heldout = (data.Dataset(part, np.arange(40, dtype=np.int32) % 4, (2,), 5) for part in draws)
    monkeypatch.setattr(data, "load", lambda _, split: train_split if split == "train" else heldout)
    seen = {}

    def evaluate_samples(samples, labels, *args, bounds):
        seen.update(samples=samples, labels=labels, bounds=bounds)
        return metrics.evaluate_samples(samples, labels, *args, bounds=bounds)

    monkeypatch.setattr("experiments.evaluate.evaluate_samples", evaluate_samples)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(SystemExit):
            evaluate(config, workdir, allow_changes=True)
    with pytest.raises(ValueError, match="was trained on other data"):
        evaluate(config, workdir)
    evaluate(config, workdir, allow_changes=True)
    assert seen["bounds"] is None
    assert seen["labels"].tolist() == [0, 1, 2, 3] * 7 + [0, 1]
    diffusion, networks, _ = trained.load_trained(config, workdir)
    again = trained.draw_samples(diffusion, networks, runs.random_key(config, 0), seen["labels"], 30, 8)
    np.testing.assert_array_equal(seen["samples"], again)
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert (figures["step"], figures["params"], figures["data_range"], figures["overrides"]) == (3, "ema", None, {})
    assert not (workdir / "evaluation_parts").exists()


def test_what_differs_from_training_is_recorded(run):
    config, workdir = run
    changed = customised(config, sampler={"cfg_interval": (0.0, 2.0)}, evaluation={"num_samples": 7})
    found = provenance.overrides(changed, workdir)
    assert found == {"sampler.cfg_interval": [0.0, 2.0], "evaluation.num_samples": 7}


def test_shapes_are_read_from_the_command_line():
    assert read_shape(["16", "24"], (8, 8, 3)) == (16, 24, 3)
    assert read_shape(["16", "24", "3"], (8, 8, 3)) == (16, 24, 3)
    for given, message in (
        (["16"], "must be like the data's, 8,8,3"),
        (["a", "b"], "positive"),
        (["8", "8", "1"], "same"),
    ):
        with pytest.raises(ValueError, match=message):
            read_shape(given, (8, 8, 3))
