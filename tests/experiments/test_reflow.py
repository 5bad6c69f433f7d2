"""Pairs of noise and sample: drawn by a flow, read in place of the data; settings that exclude them."""

import importlib

import jax
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise
from diffusers_fn.from_config.noise import make_noise
from experiments import data, trained
from experiments.data.dataset import Dataset
from experiments.reflow import check_plan, reflow
from experiments.sample import sample
from experiments.train import check_intervals, train

pytestmark = pytest.mark.usefixtures("signal_handlers")


def tiny(variant, **sections):
    config = importlib.import_module("configs.flow").get_config(variant)
    steps = {"num_steps": 3, "warmup_steps": 0, "batch_size": 16, "sample_every": 0, "checkpoint_every": 3}
    config = customise(config, training=steps)
    config.backbone.hidden_size, config.backbone.depth = 16, 1
    return customise(config, **sections)


@pytest.mark.long  # two trainings
def test_pairs_are_noise_and_its_sample_by_the_flow_and_can_be_trained_on(tmp_path):
    config = tiny("uniform", sampler={"num_inference_steps": 3, "cfg_scale": 1.0})
    train(config, tmp_path / "flow")
    path = reflow(config, tmp_path / "flow", num_pairs=25, batch_size=10)
    pairs = np.load(path)
    np.testing.assert_array_equal(pairs["labels"], np.arange(25) % 10)
    assert abs(pairs["noise"].mean()) < 0.1  # four standard errors of the mean of 1600 numbers
    assert abs(pairs["noise"].std() - 1) < 0.07

    # The same path by the library's own parts.
    _, networks, _ = trained.load_trained(config, tmp_path / "flow")
    levels = make_noise(config.noise_schedule).grid("trailing", 3)
    denoise = dfn.build_denoiser(config)(networks.own, jax.numpy.asarray(pairs["labels"]))
    taken = dfn.sample(None, denoise, dfn.solvers.heun(levels), jax.numpy.asarray(pairs["noise"])).x0
    np.testing.assert_allclose(pairs["images"], taken, atol=1e-4)

    straight = tiny("reflow", data={"pairs": str(path)})
    train(straight, tmp_path / "straight")
    sample(straight, tmp_path / "straight", num_samples=10, batch_size=10)


def test_noise_stays_with_its_example_and_is_mirrored_with_it():
    images = np.arange(2 * 5 * 4, dtype=np.float32).reshape(5, 2, 4, 1)
    dataset = Dataset(images, np.arange(5, dtype=np.int32), (2, 4, 1), 5, noise=-images)
    batch = data.batch_at(dataset, 5, seed=0, step=0, flip=True)
    np.testing.assert_array_equal(batch["noise"], -batch["image"])
    mirrored = [not np.array_equal(image, images[y]) for image, y in zip(batch["image"], batch["label"])]
    assert 0 < sum(mirrored) < 5


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_pairs_of_other_data_are_refused(tmp_path):
    dataset = Dataset(np.zeros((3, 4), np.float32), np.arange(3, dtype=np.int32), (4,), 3)
    blank = np.zeros((6, 4), np.float32)
    good = write(tmp_path / "good.npz", images=blank, noise=blank, labels=np.arange(6) % 3)
    assert len(data.paired(good, dataset)) == 6
    for name, arrays, message in (
        ("a", {"images": blank}, "no array 'noise'"),
        ("b", {"images": blank, "noise": blank[:, :2]}, "the data have shape"),
        ("c", {"images": blank, "noise": blank, "labels": np.arange(6)}, r"label 3 .index 3. is beyond the 3 classes"),
        ("d", {"images": blank, "noise": blank, "labels": np.arange(6) - 1}, "label -1 .* is negative"),
        ("e", {"images": blank, "noise": blank}, "has no labels, the data have 3 classes"),
        ("f", {"images": blank, "noise": blank * np.nan, "labels": np.zeros(6, int)}, "are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            data.paired(write(tmp_path / f"{name}.npz", **arrays), dataset)
    with pytest.raises(ValueError, match=r"does not exist: write it with experiments.reflow"):
        data.paired(str(tmp_path / "none.npz"), dataset)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:100])
    np.save(tmp_path / "one.npy", blank)
    for name in ("cut.npz", "one.npy"):
        with pytest.raises(ValueError, match=f"{name}.* cannot be read"):
            data.paired(str(tmp_path / name), dataset)


def test_settings_that_exclude_pairs_are_refused():
    with pytest.raises(ValueError, match="draws noise on the way"):
        check_plan(tiny("uniform", sampler={"name": "euler_ancestral"}))
    with pytest.raises(ValueError, match="does not start at pure noise"):
        check_plan(importlib.import_module("configs.ddpm_digits").get_config())
    with pytest.raises(ValueError, match=r"config.data.pairs holds pairs"):
        check_intervals(tiny("ot", data={"pairs": "somewhere.npz"}))
