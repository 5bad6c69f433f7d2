"""Latents on disk: training on them equals encoding in every step; files that do not fit are refused."""

import importlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise
from experiments import data, latent_cache, latent_shards, runs, states, tasks
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
    """Returns the work directory of an autoencoder and the folder of its latents."""
    workdir = tmp_path_factory.mktemp("stage") / "autoencoder"
    train(tiny("autoencoder"), workdir)
    return workdir, encode(tiny("autoencoder"), workdir, batch_size=1000)


def second(stage, **latent):
    return tiny("latent", latent={"autoencoder_workdir": str(stage[0]), "cache": str(stage[1]), **latent})


def losses_of(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays_of(folder, name):
    return np.concatenate([np.load(file) for file in sorted(folder.glob(f"{name}-*.npy"))])


def single_file(stage, path, **change):
    """Writes the latents as earlier versions did, in one .npz file."""
    held = {name: arrays_of(stage[1], name) for name in ("mean", "logvar", "labels")}
    held["checksum"] = np.int64(json.loads((stage[1] / "latents.json").read_text())["checksum"])
    np.savez(path, **{name: value for name, value in {**held, **change}.items() if value is not None})
    return path


@pytest.mark.long
def test_the_folder_holds_the_latents_of_both_splits(stage):
    workdir, path = stage
    config = tiny("autoencoder")
    net = dfn.build_autoencoder(config)
    _, state = states.load_state(config, workdir, states.state_like(config, net.init))
    assert path == workdir / "latents"
    for prefix, split, number in (("", "train", 1438), ("heldout_", "heldout", 359)):
        dataset = data.load(runs.data_seed(config), split)
        held = {name: arrays_of(path, f"{prefix}{name}") for name in ("mean", "logvar", "labels")}
        assert held["mean"].shape == (number, 16)
        chosen = np.array([0, number - 1])
        mean, logvar = net.encode(state.ema, data.float_images(dataset, chosen))
        np.testing.assert_allclose(held["mean"][chosen], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(held["logvar"][chosen], logvar, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(held["labels"], dataset.labels)
    means = SimpleNamespace(name="arrays", path=str(path), images_key="mean", normalize=False, heldout_fraction=0.0)
    np.testing.assert_array_equal(data.load(means, "train").images, arrays_of(path, "mean"))


def test_shards_of_any_size_a_single_file_and_latents_in_memory_are_the_same_data(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_shards, "_SHARD_BYTES", 5000)
    mean, logvar, labels = (arrays_of(stage[1], name) for name in ("mean", "logvar", "labels"))
    parts = ((mean[start : start + 50], logvar[start : start + 50]) for start in range(0, len(mean), 50))
    with latent_shards.latent_writer(tmp_path / "latents") as writer:
        writer.write("train", parts, labels)
        writer.finish({"checksum": json.loads((stage[1] / "latents.json").read_text())["checksum"]})
    assert len(list((tmp_path / "latents").glob("mean-*.npy"))) == 15  # 100 latents of 64 bytes each
    monkeypatch.setattr(latent_cache, "checksum", lambda params: latent_shards.read_latents(stage[1]).checksum)
    batches = []
    for path in (stage[1], tmp_path / "latents", single_file(stage, tmp_path / "latents.npz")):
        for limit in (0, 100):
            config = second(stage, cache=str(path))
            config.data.memory_limit_mb = limit
            dataset = latent_cache.in_place_of(config, data.load(runs.data_seed(config), "train"), None)
            assert isinstance(dataset.images, np.ndarray) == (limit > 0)
            batches.append(latent_cache.split(data.batch_at(dataset, 64, 0, 30)))
            chosen = data.batch_indices(dataset, 64, 0, 30)
        found = latent_cache.calibrate(latent_cache.read(config, None))
        np.testing.assert_allclose(found, dfn.latents.calibrate(mean, logvar), rtol=1e-12)
    for batch in batches:
        np.testing.assert_array_equal(batch["mean"], mean[chosen])
        np.testing.assert_array_equal(batch["logvar"], logvar[chosen])
        np.testing.assert_array_equal(batch["label"], labels[chosen])


def test_an_interrupted_encoding_leaves_nothing_and_other_folders_are_not_replaced(stage, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=r"mine exists and holds no latents: set --output to another folder"):
        encode(tiny("autoencoder"), stage[0], output=tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
    monkeypatch.setattr(data, "float_images", lambda dataset, which: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode(tiny("autoencoder"), stage[0], output=tmp_path / "latents")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.long  # two trainings
def test_training_on_the_latents_is_training_on_the_images(stage, tmp_path):
    """The draws and the batches are the same, so the losses agree up to the rounding of different programs."""
    train(second(stage), tmp_path / "cached")
    train(second(stage, cache=""), tmp_path / "images")
    np.testing.assert_allclose(losses_of(tmp_path / "cached"), losses_of(tmp_path / "images"), rtol=1e-5)
    assert len(losses_of(tmp_path / "cached")) == 3
    sample(second(stage, cache=""), tmp_path / "cached", num_samples=10, batch_size=10)
    assert np.load(tmp_path / "cached" / "sampled" / "samples.npz")["samples"].shape == (10, 8, 8, 1)


def test_latents_of_another_autoencoder_are_refused_at_the_start_and_on_resuming(stage, tmp_path):
    other = single_file(stage, tmp_path / "other.npz", checksum=np.int64(1))
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
        ({"labels": None}, {}, "latents of other data"),
        ({"mean": None}, {}, "was not written by experiments.encode"),
        (None, {}, "does not exist: run experiments.encode, or set it to ''"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(stage, tmp_path, monkeypatch, change, sections, message):
    path = tmp_path / "latents.npz"
    if change is not None:
        single_file(stage, path, **change)
    monkeypatch.setattr(latent_cache, "checksum", lambda params: latent_shards.read_latents(stage[1]).checksum)
    config = customise(second(stage, cache=str(path)), **sections)
    with pytest.raises(ValueError, match=message):
        latent_cache.in_place_of(config, data.load(runs.data_seed(config), "train"), None)


def test_without_held_out_data_all_examples_are_encoded(tmp_path, capsys):
    config = tiny("autoencoder", data={"heldout_fraction": 0.0}, training={"num_steps": 1})
    train(config, tmp_path)
    folder = encode(config, tmp_path, batch_size=1797)
    assert arrays_of(folder, "mean").shape == (1797, 16)
    assert not list(folder.glob("heldout_*"))
    assert "1797 latents of" in capsys.readouterr().out


def test_only_autoencoders_encode(tmp_path):
    with pytest.raises(ValueError, match=r"task is 'diffusion': only runs of the task 'autoencoder' can encode data"):
        encode(tiny("latent"), tmp_path)
