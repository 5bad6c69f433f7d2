"""Measures the error of inverting held-out images to noise and sampling them back, by solver and number of levels.

    python -m experiments.round_trip --workdir=runs/digits

Inverts images with a trained model, samples from the noise, and writes the root mean square error into round_trip.json
and round_trip.png in the work directory. Nothing is clipped or guided. Each way, heun and coupled take two network
evaluations per level, the others one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from diffusers_fn import Denoiser, Level, grids, solvers
from diffusers_fn.from_config import derived
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.noise import TIME_LABELS, make_noise
from experiments import data, over_devices, own, processes, runs, trained
from experiments.files import write_atomically, write_text
from experiments.provenance import provenance


def by(make: Callable[[Level], dfn.Solver]) -> Callable[[Denoiser, Level, jax.Array], jax.Array]:
    """Returns the round trip that uses one solver both ways."""

    def round_trip(denoise: Denoiser, levels: Level, x0: jax.Array) -> jax.Array:
        x = dfn.invert(denoise, levels, x0, make=make, refine=4)
        return dfn.sample(None, denoise, make(levels), x).x0

    return round_trip


def implicit(denoise: Denoiser, levels: Level, x0: jax.Array) -> jax.Array:
    """The round trip by DDIM whose steps are inverted implicitly, with one evaluation per level."""
    x = dfn.invert_implicit(denoise, levels, x0)
    return dfn.sample(None, denoise, solvers.ddim(levels), x).x0


def coupled(denoise: Denoiser, levels: Level, x0: jax.Array) -> jax.Array:
    """The round trip by two coupled paths (EDICT), which is exact."""
    return dfn.sample_coupled(denoise, levels, dfn.invert_coupled(denoise, levels, x0))


ROUND_TRIPS = {
    "ddim": by(solvers.ddim),
    "ddim, implicit steps": implicit,
    "dpmpp_2m": by(solvers.dpmpp_2m),
    "heun": by(solvers.heun),
    "deis (3)": by(solvers.deis),
    "coupled": coupled,
}


def measure(
    make: Callable[[Any], Denoiser], params: Any, schedule: dfn.NoiseSchedule, x0: jax.Array, sizes: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Returns {name: {"levels", "rmse"}} over numbers of levels, with the denoiser make(params)."""
    figures: dict[str, dict[str, Any]] = {name: {"levels": sizes, "rmse": []} for name in ROUND_TRIPS}
    with tqdm(total=len(sizes) * len(ROUND_TRIPS), desc="round trips") as progress:
        for name, round_trip in ROUND_TRIPS.items():
            run = jax.jit(lambda params, levels, x0, round_trip=round_trip: round_trip(make(params), levels, x0))
            for num_levels in sizes:
                levels = grids.uniform_log_snr(schedule, num_levels)
                back = run(params, jax.tree.map(jnp.float32, levels), x0)
                figures[name]["rmse"].append(float(jnp.sqrt(jnp.mean((back - x0) ** 2))))
                progress.update()
    return figures


def round_trip(
    config: ConfigDict,
    workdir: Path,
    *,
    num_images: int = 100,
    sizes: Sequence[int] = (5, 10, 20, 40, 80),
    params: str = "ema",
) -> None:
    """Writes round_trip.json and round_trip.png, and prints the errors, in the units of the data, as a table."""
    section, tables = config.noise_schedule, own.tables(config)
    if config.latent.enabled or not choose("loss.objective", config.loss.objective, tables.objectives).denoiser:
        raise ValueError(
            "round trips need a denoiser of data: set latent.enabled to False and loss.objective to 'denoising'; got "
            f"{config.latent.enabled} and {config.loss.objective!r}"
        )
    schedule = make_noise(section).schedule
    if schedule is None or TIME_LABELS[section.time_label] is not None:
        raise ValueError(
            "round trips need a table of betas and its timesteps: set noise_schedule.process to 'table' and "
            f"time_label to 'step'; got {section.process!r} and {section.time_label!r}"
        )
    heldout = data.load(runs.data_seed(config), "heldout")
    runs.check_data_fits(config, heldout)
    _, networks, step = trained.load_trained(config, workdir, params)
    indices = np.arange(min(num_images, len(heldout)))
    images = data.float_images(heldout, indices)
    mesh, cond = over_devices.mesh_of(networks), None
    if derived.num_classes(config) and heldout.labels is not None:
        cond = dfn.training.replicate(heldout.labels[indices], mesh)

    make_denoiser = dfn.build_denoiser(config, tables)
    make = lambda params: make_denoiser(params, cond)  # noqa: E731
    about = provenance(config, workdir, step, params) | {"num_images": len(images)}
    figures = measure(make, networks.own, schedule, dfn.training.replicate(images, mesh), sizes)
    if processes.is_main():
        write_text(workdir / "round_trip.json", json.dumps(about | {"figures": figures}, indent=1) + "\n")
        draw(workdir / "round_trip.png", figures)
    print(f"{'rmse, by number of levels':26}" + "".join(f"{n:>10}" for n in sizes))
    for name, curve in figures.items():
        print(f"{name:26}" + "".join(f"{error:10.2g}" for error in curve["rmse"]))
    print(f"written to {workdir / 'round_trip.json'} and {workdir / 'round_trip.png'}")


def draw(path: Path, figures: dict[str, dict[str, Any]]) -> None:
    """Writes the errors as curves over the number of levels."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, curve in figures.items():
        axes.plot(curve["levels"], curve["rmse"], marker="o", markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="levels", ylabel="error of the round trip (rms)")
    sizes = next(iter(figures.values()))["levels"]
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("num_images", 100, "Number of held-out images.", lower_bound=1)
    flags.DEFINE_list("sizes", ["5", "10", "20", "40", "80"], "Numbers of levels.")
    trained.define_params_flag()
    runs.run(
        lambda config, workdir: round_trip(
            config,
            workdir,
            num_images=flags.FLAGS.num_images,
            sizes=[int(size) for size in flags.FLAGS.sizes],
            params=flags.FLAGS.params,
        )
    )
