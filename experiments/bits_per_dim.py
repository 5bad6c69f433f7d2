"""Measures bits per dimension of held-out images under a trained model, by variational bound and probability flow.

    python -m experiments.bits_per_dim --workdir=runs/learned_variance

Prints, and writes into bits_per_dim.json, with standard errors over the images:

- `bound`: the variational bound, one draw per timestep, for models on a table of timesteps;
- `flow, uniform`: the density by the probability flow at the last noisy level, for images dequantised by uniform noise
  over the bins of their grey levels; most papers publish this figure;
- `flow, noise`: the same for images dequantised by the last level's own noise, which suits a model that has learned the
  grey levels themselves.

All three are upper bounds, so the lower of the two flow figures counts; its difference to `bound` is given with
the standard error over paired images. A class-conditional model gets the images' labels, a text-conditional one their
captions. Grey levels are found by themselves; those that do not reach from -1 to 1 (data.normalize=False) have `flow,
uniform` alone. Data without grey levels (toy2d) have only a density, in bits without an offset, which is not comparable
with published figures.
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
from diffusers_fn.from_config import derived
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.conditions import takes_text
from diffusers_fn.from_config.noise import Noise, make_noise
from diffusers_fn.from_config.objectives import OBJECTIVES
from diffusers_fn.from_config.outputs import VARIANCES
from diffusers_fn.processes import at_log_snr
from diffusers_fn.solvers.tableaus import HEUN, RK4
from experiments import data, over_devices, own, processes, runs, texts, trained
from experiments.files import write_text
from experiments.grey_levels import Grid, find_grid, given_grid
from experiments.provenance import provenance
from experiments.tasks import TASKS
from experiments.workdir import check_data

DISCRETE = "bits per dimension"
DENSITY = "bits per dimension of a density, not comparable with published bits/dim (the data have no grey levels)"

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
    params: str = "ema",
    allow_changes: bool = False,
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
      params: which parameters: "ema", "raw" or "ema:STD", see `states.choose_params`.
      allow_changes: accept other data than those of the training, of which the held-out part may have been trained on.

    Raises:
      ValueError: if the model is not a diffusion model of data whose network is a denoiser, or the data do not lie on
        `num_levels` grey levels.
    """
    entry = choose("loss.objective", config.loss.objective, own.tables(config).objectives)
    if not (choose("task", config.task, TASKS).has_samples and entry.denoiser):
        raise ValueError(
            "bits per dimension need a diffusion model whose network is a denoiser (task 'diffusion', loss.objective "
            f"{', '.join(name for name, each in OBJECTIVES.items() if each.denoiser)}); got task {config.task!r}, "
            f"objective {config.loss.objective!r}"
        )
    if config.latent.enabled:
        raise ValueError("config.latent.enabled: bits per dimension are those of data, not of latents")
    train, heldout = (data.load(runs.data_seed(config), split) for split in ("train", "heldout"))
    runs.check_data_fits(config, heldout)
    record = data.describe(train, heldout)
    processes.on_main(lambda: check_data(workdir, record, allow_changes=allow_changes, train=False))
    _, networks, step = trained.load_trained(config, workdir, params)
    indices = np.arange(min(num_images or len(heldout), len(heldout)))
    images = data.float_images(heldout, indices)
    labels = conditions(config, workdir, train, heldout, indices)
    bounds = derived.data_range(config)
    grid = given_grid(num_levels, images, bounds) if num_levels else find_grid(images, bounds)
    scores = make_scores(config, grid, steps, num_probes)
    bits = {}
    for i, (name, score) in enumerate(scores.items()):
        keys = jax.random.split(jax.random.fold_in(runs.random_key(config, seed), i), len(images))
        bits[name] = score_images(score, networks.own, keys, images, labels, config.evaluation.batch_size, name)
    figures: dict[str, Any] = provenance(config, workdir, step, params) | {
        "figure": DISCRETE if grid else DENSITY,
        "num_images": len(images),
        "grey_levels": grid and grid.num_levels,
        "grey_level_range": grid and [grid.first, grid.last],
        "flow_levels": steps,
        "seed": seed,
    }
    figures["bits_per_dim"] = {name: summary(value) for name, value in bits.items()}
    if "bound" in bits:
        best = min((name for name in bits if name != "bound"), key=lambda name: bits[name].mean())
        figures["difference"] = {f"{best} - bound": summary(bits[best] - bits["bound"])}
    if processes.is_main():
        write_text(workdir / "bits_per_dim.json", json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print(f"written to {workdir / 'bits_per_dim.json'}")


def make_scores(config: ConfigDict, grid: Grid | int | None, steps: int, num_probes: int) -> dict[str, Score]:
    """Returns {name: (params, keys, images, labels) -> bits per dimension [B]} of the scores that apply.

    Args:
      config: of the model.
      grid: grey levels of the data; a number of levels from -1 to 1; or None.
      steps, num_probes: of the flow.
    """
    noise, make_denoiser = make_noise(config.noise_schedule), dfn.build_denoiser(config, own.tables(config))
    shape, levels = tuple(config.data.shape), flow_levels(noise, steps)
    if isinstance(grid, int):
        grid = Grid(-1.0, 1.0, grid)
    num_levels, half = (grid.num_levels, (grid.last - grid.first) / 2) if grid else (2, 1.0)
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
            clip_denoised=config.sampler.clip_denoised and derived.data_range(config) is not None,
            labels=time_labels,
            num_levels=num_levels,
        ).total_bpd

    def flow_by_noise(params: Any, keys: jax.Array, images: jax.Array, labels: Any) -> jax.Array:
        noise_keys, probe_keys = _two(keys)
        x, correction = likelihood.noise_dequantize(noise_keys, images, last, num_levels)
        return likelihood.bits_per_dim(log_density(params, probe_keys, x, labels) + correction, shape)

    def flow_by_uniform(params: Any, keys: jax.Array, images: jax.Array, labels: Any) -> jax.Array:
        noise_keys, probe_keys = _two(keys)
        x = half * likelihood.uniform_dequantize(noise_keys, images / half, num_levels)
        bits = likelihood.bits_per_dim(log_density(params, probe_keys, x, labels), shape, num_levels=num_levels)
        return bits - jnp.log2(half)

    def flow(params: Any, keys: jax.Array, images: jax.Array, labels: Any) -> jax.Array:
        return likelihood.bits_per_dim(log_density(params, keys, images, labels), shape)

    if grid is None:
        return {"flow": flow}
    if (grid.first, grid.last) != (-1.0, 1.0):  # the other two are defined on levels from -1 to 1
        return {"flow, uniform": flow_by_uniform}
    found: dict[str, Score] = {"flow, uniform": flow_by_uniform, "flow, noise": flow_by_noise}
    return found if schedule is None else {"bound": bound, **found}


def flow_levels(noise: Noise, steps: int) -> Level:
    """Returns the levels of the flow, evenly spaced in log SNR; a table that ends at pure noise has its timesteps."""
    if noise.process is None:
        return noise.grid("uniform", steps)
    ends = dfn.log_snr(noise.process(np.array([noise.process.t_max, noise.process.t_min])))
    lowest = max(ends[0], -14.0)  # alpha / sigma = 0.001: N(0, sigma^2) is the data's own there, to 0.001 a dimension
    return at_log_snr(noise.process, np.linspace(lowest, ends[1], steps))


def conditions(
    config: ConfigDict, workdir: Path, train: data.Dataset, heldout: data.Dataset, indices: np.ndarray
) -> np.ndarray | None:
    """Returns the labels [n] or the tokens of the captions [n, ...] of held-out examples; None without conditions."""
    if takes_text(config):
        (_, dataset), _ = texts.in_place(config, workdir, train, heldout)
        return np.asarray(dataset.text[indices])
    return heldout.labels[indices] if derived.num_classes(config) and heldout.labels is not None else None


def score_images(
    score: Score, params: Any, keys: jax.Array, images: np.ndarray, labels: Any, batch_size: int, name: str
) -> np.ndarray:
    """Returns the bits per dimension [n] of all images, in batches by one compiled program over all devices."""
    batch_size = min(batch_size, len(images))
    run, parts, mesh = jax.jit(score), [], over_devices.mesh_of(params)
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc=name, unit="batch", disable=not processes.is_main()):
        which = np.arange(start, start + batch_size) % len(images)  # the last batch wraps around
        batch = keys[which], images[which], None if labels is None else labels[which]
        parts.append(over_devices.first_rows(run(params, *over_devices.split_rows(batch, mesh)), batch_size))
    return np.concatenate(parts)[: len(images)].astype(np.float64)


def summary(bits: np.ndarray) -> dict[str, float]:
    """Returns the mean over images and its standard error."""
    return {"mean": float(bits.mean()), "standard_error": float(bits.std(ddof=1) / np.sqrt(len(bits)))}


def table(figures: dict[str, Any]) -> str:
    """Returns the figures as lines of text."""
    levels = figures["grey_levels"]
    rows = [f"{figures['figure']}, {figures['num_images']} held-out examples"]
    if levels:
        first, last = figures["grey_level_range"]
        ends = "" if (first, last) == (-1.0, 1.0) else f" from {first:g} to {last:g}"
        rows = [f"{figures['figure']} of {figures['num_images']} held-out examples ({levels} grey levels{ends})"]
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
    trained.define_params_flag()
    trained.define_allow_changes_flag()
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
            params=values.params,
            allow_changes=values.allow_changes,
        )
    )
