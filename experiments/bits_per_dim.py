"""Measures bits per dimension of held-out images under a trained model, by variational bound and probability flow.

    python -m experiments.bits_per_dim --config=configs/learned_variance.py --workdir=runs/learned_variance

Prints, and writes into bits_per_dim.json, with standard errors over the images:

- `bound`: the variational bound, one draw per timestep, for models on a table of timesteps;
- `flow, uniform`: the density by the probability flow at the last noisy level, for images dequantised by uniform noise
  over the bins of their grey levels; most papers publish this figure;
- `flow, noise`: the same for images dequantised by the last level's own noise, which suits a model that has learned the
  grey levels themselves.

All three are upper bounds, so the lower of the two flow figures counts; its difference to `bound` is given with
the standard error over paired images. A class-conditional model gets the images' labels. Data without grey levels
(toy2d) have only a density, in bits without an offset.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from diffusers_fn import Level, likelihood
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.noise import Noise, make_noise
from diffusers_fn.from_config.objectives import OBJECTIVES
from diffusers_fn.from_config.outputs import VARIANCES
from diffusers_fn.processes import at_log_snr
from diffusers_fn.solvers.tableaus import HEUN, RK4
from experiments import data, runs, trained
from experiments.files import write_text
from experiments.tasks import TASKS

Score = Callable[[Any, jax.Array, jax.Array, Any], jax.Array]  # (params, keys, images, labels) -> bits [B]


def bits_per_dim(
    config: ConfigDict,
    workdir: Path,
    *,
    num_images: int = 0,
    num_levels: int = 0,
    steps: int = 100,
    num_probes: int = 4,
    seed: int = 0,
) -> None:
    """Writes bits_per_dim.json and prints it as a table.

    Args:
      config: as trained.
      workdir: of the run.
      num_images: number of held-out images; 0 for all.
      num_levels: number of grey levels of the data; 0 to detect it.
      steps: levels of the flow, four network evaluations each.
      num_probes: random vectors for its divergence.
      seed: of all random numbers.

    Raises:
      ValueError: if the model is not a diffusion model of data whose network is a denoiser, or the data do not lie on
        `num_levels` grey levels.
    """
    entry = choose("loss.objective", config.loss.objective, OBJECTIVES)
    if not (choose("task", config.task, TASKS).has_samples and entry.denoiser):
        raise ValueError(
            "bits per dimension need a diffusion model whose network is a denoiser (task 'diffusion', loss.objective "
            f"{', '.join(name for name, each in OBJECTIVES.items() if each.denoiser)}); got task {config.task!r}, "
            f"objective {config.loss.objective!r}"
        )
    if config.latent.enabled:
        raise ValueError("config.latent.enabled: bits per dimension are those of data, not of latents")
    heldout = data.load(runs.data_seed(config), "heldout")
    runs.check_data_fits(config, heldout)
    _, networks, step = trained.load_trained(config, workdir)
    indices = np.arange(min(num_images or len(heldout), len(heldout)))
    images = data.float_images(heldout, indices)
    labels = heldout.labels[indices] if config.backbone.num_classes and heldout.labels is not None else None
    levels = num_levels or grey_levels(images)
    scores = make_scores(config, levels, steps, num_probes)
    bits = {}
    for i, (name, score) in enumerate(scores.items()):
        keys = jax.random.split(jax.random.fold_in(runs.random_key(config, seed), i), len(images))
        bits[name] = score_images(score, networks.own, keys, images, labels, config.evaluation.batch_size, name)
    figures: dict[str, Any] = {
        "step": step,
        "num_images": len(images),
        "grey_levels": levels,
        "flow_levels": steps,
        "seed": seed,
    }
    figures["bits_per_dim"] = {name: summary(value) for name, value in bits.items()}
    if "bound" in bits:
        best = min((name for name in bits if name != "bound"), key=lambda name: bits[name].mean())
        figures["difference"] = {f"{best} - bound": summary(bits[best] - bits["bound"])}
    write_text(workdir / "bits_per_dim.json", json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print(f"written to {workdir / 'bits_per_dim.json'}")


def make_scores(config: ConfigDict, num_levels: int | None, steps: int, num_probes: int) -> dict[str, Score]:
    """Returns {name: (params, keys, images, labels) -> bits per dimension [B]} of the scores that apply.

    Args:
      config: of the model.
      num_levels: grey levels of the data, or None.
      steps, num_probes: of the flow.
    """
    noise, make_denoiser = make_noise(config.noise_schedule), dfn.build_denoiser(config)
    shape, levels = tuple(config.data.shape), flow_levels(noise, steps)
    schedule, last = noise.schedule, jax.tree.map(lambda a: a[-1], levels)

    def log_density(params: Any, keys: jax.Array, x: jax.Array, labels: Any) -> jax.Array:
        return likelihood.log_prob(
            keys,
            make_denoiser(params, labels),
            levels,
            x,
            trace=likelihood.hutchinson(num_probes),
            tableau=HEUN if noise.process is None else RK4,
            process=noise.process,
        ).log_prob

    def bound(params: Any, keys: jax.Array, images: jax.Array, labels: Any) -> jax.Array:
        assert schedule is not None
        assert num_levels is not None
        num_timesteps = schedule.betas.shape[0]
        time_labels = noise.level((jnp.arange(num_timesteps) + 0.5) / num_timesteps).t
        return likelihood.calc_bpd(
            keys,
            schedule,
            make_denoiser(params, labels),
            images,
            variance=VARIANCES[config.variance],
            clip_denoised=config.sampler.clip_denoised,
            labels=time_labels,
            num_levels=num_levels,
        ).total_bpd

    def flow_by_noise(params: Any, keys: jax.Array, images: jax.Array, labels: Any) -> jax.Array:
        noise_keys, probe_keys = _two(keys)
        x, correction = likelihood.noise_dequantize(noise_keys, images, last, num_levels or 2)
        return likelihood.bits_per_dim(log_density(params, probe_keys, x, labels) + correction, shape)

    def flow_by_uniform(params: Any, keys: jax.Array, images: jax.Array, labels: Any) -> jax.Array:
        noise_keys, probe_keys = _two(keys)
        x = likelihood.uniform_dequantize(noise_keys, images, num_levels or 2)
        return likelihood.bits_per_dim(log_density(params, probe_keys, x, labels), shape, num_levels=num_levels)

    def flow(params: Any, keys: jax.Array, images: jax.Array, labels: Any) -> jax.Array:
        return likelihood.bits_per_dim(log_density(params, keys, images, labels), shape)

    if num_levels is None:
        return {"flow": flow}
    found: dict[str, Score] = {"flow, uniform": flow_by_uniform, "flow, noise": flow_by_noise}
    return found if schedule is None else {"bound": bound, **found}


def flow_levels(noise: Noise, steps: int) -> Level:
    """Returns the levels of the flow, evenly spaced in log SNR; a table that ends at pure noise has its timesteps."""
    if noise.process is None:
        return noise.grid("uniform", steps)
    ends = dfn.log_snr(noise.process(np.array([noise.process.t_max, noise.process.t_min])))
    lowest = max(ends[0], -14.0)  # alpha / sigma = 0.001: N(0, sigma^2) is the data's own there, to 0.001 a dimension
    return at_log_snr(noise.process, np.linspace(lowest, ends[1], steps))


def score_images(
    score: Score, params: Any, keys: jax.Array, images: np.ndarray, labels: Any, batch_size: int, name: str
) -> np.ndarray:
    """Returns the bits per dimension [n] of all images, in batches by one compiled program."""
    batch_size = min(batch_size, len(images))
    run, parts = jax.jit(score), []
    for start in tqdm(range(0, len(images), batch_size), desc=name, unit="batch"):
        which = np.arange(start, start + batch_size) % len(images)  # the last batch wraps around
        parts.append(np.asarray(run(params, keys[which], images[which], None if labels is None else labels[which])))
    return np.concatenate(parts)[: len(images)].astype(np.float64)


def grey_levels(images: np.ndarray) -> int | None:
    """Returns the number of evenly spaced levels from -1 to 1 on which the data lie; None if it exceeds 256.

    >>> grey_levels(np.array([-1.0, 0.5, 1.0]))
    5
    """
    values = np.unique(images)
    for num_levels in range(2, 257):
        steps = (values + 1) * (num_levels - 1) / 2
        if np.all(np.abs(steps - np.round(steps)) < 1e-3):
            return num_levels
    return None


def summary(bits: np.ndarray) -> dict[str, float]:
    """Returns the mean over images and its standard error."""
    return {"mean": float(bits.mean()), "standard_error": float(bits.std(ddof=1) / np.sqrt(len(bits)))}


def table(figures: dict[str, Any]) -> str:
    """Returns the figures as lines of text."""
    levels = figures["grey_levels"]
    of = f"{levels} grey levels" if levels else "no grey levels: a density"
    rows = [f"bits per dimension of {figures['num_images']} held-out examples ({of})"]
    named = figures["bits_per_dim"] | figures.get("difference", {})
    return "\n".join(rows + [f"{n:22}{v['mean']:10.4f} +- {v['standard_error']:.4f}" for n, v in named.items()])


def _two(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("num_images", 0, "Number of held-out images; 0 for all.", lower_bound=0)
    flags.DEFINE_integer("num_levels", 0, "Number of grey levels of the data; 0 to detect it.", lower_bound=0)
    flags.DEFINE_integer("steps", 100, "Levels of the flow.", lower_bound=2)
    flags.DEFINE_integer("num_probes", 4, "Random vectors for the divergence of the flow.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of all random numbers.", lower_bound=0)
    values = flags.FLAGS
    runs.run(
        lambda config, workdir: bits_per_dim(
            config,
            workdir,
            num_images=values.num_images,
            num_levels=values.num_levels,
            steps=values.steps,
            num_probes=values.num_probes,
            seed=values.seed,
        )
    )
