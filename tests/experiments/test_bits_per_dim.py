"""Bits per dimension of a trained model, from the command line and against exact answers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffusers_fn as dfn
from configs import edm, few_step, latent, learned_variance, score_sde
from diffusers_fn import likelihood, oracles
from diffusers_fn.from_config.defaults import customise
from experiments import bits_per_dim, grey_levels, round_trip

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--config.backbone.hidden_size=16",
    "--config.backbone.depth=1",
    "--config.noise_schedule.noise_steps=40",
    "--config.noise_schedule.beta_end=0.4",
    "--config.sampler.num_inference_steps=5",
    "--config.training.num_steps=3",
    "--config.training.warmup_steps=1",
    "--config.training.batch_size=16",
    "--config.evaluation.num_samples=100",
    "--config.evaluation.batch_size=8",
]


@pytest.mark.long
@pytest.mark.parametrize("variant", ["hybrid", "vlb"])
def test_train_and_score(variant, command, tmp_path):
    workdir = tmp_path / variant
    arguments = [f"--config={ROOT}/configs/learned_variance.py:{variant}", f"--workdir={workdir}", *SMALL]
    command("train", *arguments)
    quick = ("--num_images=12", "--steps=4", "--num_probes=1")
    output = command("bits_per_dim", *arguments, *quick)
    assert "12 held-out examples (17 grey levels)" in output
    figures = json.loads((workdir / "bits_per_dim.json").read_text())
    assert (figures["figure"], figures["params"], figures["step"]) == ("bits per dimension", "ema", 3)
    refused = command("bits_per_dim", *arguments, *quick, "--num_levels=5", code=1)
    assert "--num_levels=5): they have 17 grey levels" in refused
    assert set(figures["bits_per_dim"]) == {"bound", "flow, uniform", "flow, noise"}
    assert all(np.isfinite(figure["mean"]) for figure in figures["bits_per_dim"].values())
    if variant == "hybrid":
        assert "class_accuracy" in command("evaluate", *arguments)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["table", "ve", "vp"])
def test_scores_of_an_exact_model_bound_the_entropy(kind, monkeypatch):
    """Images whose pixels are rounded normal numbers, 17 levels: all figures lie above their exact bits, near them."""
    if kind == "table":
        config = learned_variance.get_config()
        customise(config, variance="fixed_large", backbone={"learned_variance": False}, loss={"objective": "denoising"})
        customise(config, noise_schedule={"noise_steps": 200, "beta_start": 5e-4, "beta_end": 0.1})
    else:
        config = score_sde.get_config(kind)
    denoise = oracles.gaussian(0.1, 0.3)
    monkeypatch.setattr(dfn, "build_denoiser", lambda *args: lambda params, cond=None: dfn.bind(denoise, cond))
    pixels = 0.1 + 0.3 * np.random.default_rng(0).standard_normal((400, 8, 8, 1))
    images = (np.clip(np.round(8 * (pixels + 1)), 0, 16) / 8 - 1).astype(np.float32)
    log_p = likelihood.discretized_gaussian_log_likelihood(
        jnp.asarray(images), jnp.full(images.shape, 0.1), jnp.full(images.shape, np.log(0.3)), num_levels=17
    )
    exact = float(-log_p.mean() / np.log(2))
    scores = bits_per_dim.make_scores(config, 17, steps=25, num_probes=1)
    assert ("bound" in scores) == (kind == "table")
    keys = jax.random.split(jax.random.key(0), 400)
    for name, score in scores.items():
        found = bits_per_dim.score_images(score, None, keys, images, None, 150, name)
        assert found.shape == (400,)
        gap = found.mean() - exact
        # Uniform noise in the bins of a smooth density costs next to nothing; the noise of the last level its entropy,
        # about log2(d / (4.13 sigma)) bits for levels d apart; the bound's steps, and the decoder's noise, likewise.
        if name == "flow, uniform":
            assert abs(gap) < 0.02
        else:
            assert 0.3 < gap < 4.0


def test_models_without_a_likelihood_are_refused(tmp_path):
    config = customise(learned_variance.get_config(), loss={"objective": "consistency"})
    with pytest.raises(ValueError, match=r"need a diffusion model whose network is a denoiser.*got task 'diffusion'"):
        bits_per_dim.bits_per_dim(config, tmp_path)
    with pytest.raises(ValueError, match="are those of data, not of latents"):
        bits_per_dim.bits_per_dim(latent.get_config(), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (latent.get_config(), "set latent.enabled to False .* got True"),
        (few_step.get_config("mean_flow"), "set .* loss.objective to 'denoising'; got False and 'mean_flow'"),
        (edm.get_config(), "'edm'"),
    ],
)
def test_round_trips_of_other_models_are_refused(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        round_trip.round_trip(config, tmp_path)


def test_bits_of_levels_in_any_range_are_those_of_the_probabilities(monkeypatch):
    """Integers: rounded normal numbers of mean 2 and standard deviation 6, whose exact bits are known."""
    config = customise(score_sde.get_config("vp"), data={"shape": (4,), "normalize": False})
    mean, std = 2.0, 6.0
    denoise = oracles.gaussian(mean, std)
    monkeypatch.setattr(dfn, "build_denoiser", lambda *args: lambda params, cond=None: dfn.bind(denoise, cond))
    images = np.round(mean + std * np.random.default_rng(0).standard_normal((300, 4)))
    edges = stats.norm.cdf((images[..., None] + [-0.5, 0.5] - mean) / std)
    exact = -np.log2(edges[..., 1] - edges[..., 0]).mean()
    grid = grey_levels.find_grid(images, None)
    assert grid == (images.min(), images.max(), 1 + np.ptp(images))
    scores = bits_per_dim.make_scores(config, grid, steps=50, num_probes=1)
    assert list(scores) == ["flow, uniform"]  # the others are defined for levels from -1 to 1
    keys = jax.random.split(jax.random.key(0), 300)
    found = bits_per_dim.score_images(scores["flow, uniform"], None, keys, images.astype(np.float32), None, 300, "")
    assert abs(found.mean() - exact) < 0.05


def test_a_density_is_named_as_one():
    figures = {"figure": bits_per_dim.DENSITY, "num_images": 5, "grey_levels": None, "grey_level_range": None}
    figures["bits_per_dim"] = {"flow": {"mean": 1.0, "standard_error": 0.1}}
    first = bits_per_dim.table(figures).splitlines()[0]
    assert first.startswith("bits per dimension of a density, not comparable with published bits/dim")
    figures |= {"figure": bits_per_dim.DISCRETE, "grey_levels": 256, "grey_level_range": [0.0, 255.0]}
    first = bits_per_dim.table(figures).splitlines()[0]
    assert first == "bits per dimension of 5 held-out examples (256 grey levels from 0 to 255)"
