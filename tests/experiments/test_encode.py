"""Latents on disk: training on them equals encoding in every step; files that do not fit are refused."""

import importlib
import json

import jax
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise
from experiments import data, latent_cache, runs, states, tasks
from experiments.encode import encode
from experiments.sample import sample
from experiments.train import train

pytestmark = pytest.mark.usefixtures("signal_handlers")


def tiny(name, **sections):
    config = importlib.import_module(f"configs.{name}").get_config()
    small = (
        {"hidden_size": 8, "depth": 1}
        if name == "latent"
        else {"encoder_hidden_dims": (8,), "decoder_hidden_dims": (8,)}
    )
    steps = {"num_steps": 3, "warmup_steps": 0, "batch_size": 16, "log_every": 1, "checkpoint_every": 1}
    return customise(customise(config, backbone=small, training=steps, sampler={"num_inference_steps": 4}), **sections)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Returns the work directory of an autoencoder and the file of its latents."""
    workdir = tmp_path_factory.mktemp("stage") / "autoencoder"
    train(tiny("autoencoder"), workdir)
    return workdir, encode(tiny("autoencoder"), workdir, batch_size=1000)


def second(stage, **latent):
    return tiny("latent", latent={"autoencoder_workdir": str(stage[0]), "cache": str(stage[1]), **latent})


def losses_of(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_the_file_holds_the_latents_of_both_splits(stage):
    workdir, path = stage
    config = tiny("autoencoder")
    net = dfn.build_autoencoder(config)
    _, state = states.load_state(config, workdir, states.state_like(config, net.init))
    held = np.load(path)
    assert path == workdir / "latents.npz"
    for prefix, split, number in (("", "train", 1438), ("heldout_", "heldout", 359)):
        dataset = data.load(runs.data_seed(config), split)
        assert held[f"{prefix}mean"].shape == (number, 16)
        chosen = np.array([0, number - 1])
        mean, logvar = net.encode(state.ema, data.float_images(dataset, chosen))
        np.testing.assert_allclose(held[f"{prefix}mean"][chosen], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(held[f"{prefix}logvar"][chosen], logvar, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(held[f"{prefix}labels"], dataset.labels)


@pytest.mark.long  # two trainings
def test_training_on_the_file_is_training_on_the_images(stage, tmp_path):
    """The draws and the batches are the same, so the losses agree up to the rounding of different programs."""
    train(second(stage), tmp_path / "cached")
    train(second(stage, cache=""), tmp_path / "images")
    np.testing.assert_allclose(losses_of(tmp_path / "cached"), losses_of(tmp_path / "images"), rtol=1e-5)
    assert len(losses_of(tmp_path / "cached")) == 3
    sample(second(stage, cache=""), tmp_path / "cached", num_samples=10, batch_size=10)
    assert np.load(tmp_path / "cached" / "sampled" / "samples.npz")["samples"].shape == (10, 8, 8, 1)


def test_latents_of_another_autoencoder_are_refused_at_the_start_and_on_resuming(stage, tmp_path):
    other = tmp_path / "other.npz"
    held = dict(np.load(stage[1]))
    np.savez(other, **{**held, "checksum": held["checksum"] + 1})
    with pytest.raises(ValueError, match=r"config.latent.cache = '.*other.npz' was made by another autoencoder"):
        train(second(stage, cache=str(other)), tmp_path / "run")
    task = tasks.make_task(second(stage, cache=str(other)), tmp_path / "run")
    extras = {"autoencoder": jax.tree.map(lambda leaf: np.zeros(leaf.shape), task.extras_like["autoencoder"])}
    dataset = data.load(runs.data_seed(second(stage)), "train")
    with pytest.raises(ValueError, match="a run that has begun keeps its own"):
        task.examples(dataset, extras)


@pytest.mark.parametrize(
    ("change", "sections", "message"),
    [
        ({}, {"seed": 1}, "holds 1438 latents of other data, or of another split"),
        ({}, {"data": {"flip": True}}, "set config.data.flip to False, or config.latent.cache to ''"),
        ({"mean": None}, {}, "was not written by experiments.encode"),
        (None, {}, "does not exist: run experiments.encode, or set it to ''"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(stage, tmp_path, monkeypatch, change, sections, message):
    path = tmp_path / "latents.npz"
    if change is not None:
        held = {**np.load(stage[1]), **change}
        np.savez(path, **{name: value for name, value in held.items() if value is not None})
    monkeypatch.setattr(latent_cache, "checksum", lambda params: np.load(stage[1])["checksum"])
    config = customise(second(stage, cache=str(path)), **sections)
    with pytest.raises(ValueError, match=message):
        latent_cache.in_place_of(config, data.load(runs.data_seed(config), "train"), None)


def test_without_held_out_data_all_examples_are_encoded(tmp_path, capsys):
    config = tiny("autoencoder", data={"heldout_fraction": 0.0}, training={"num_steps": 1})
    train(config, tmp_path)
    held = np.load(encode(config, tmp_path, batch_size=1797))
    assert held["mean"].shape == (1797, 16)
    assert "heldout_mean" not in held
    assert "1797 latents of" in capsys.readouterr().out


def test_only_autoencoders_encode(tmp_path):
    with pytest.raises(ValueError, match=r"task is 'diffusion': only runs of the task 'autoencoder' can encode data"):
        encode(tiny("latent"), tmp_path)
