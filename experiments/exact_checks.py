"""Compares score SDEs, likelihoods and guidance with exact solutions, in one picture.

    python -m experiments.exact_checks --output=runs/exact

The exact scores of simple distributions replace the network. Writes exact_checks.json and exact_checks.png:

- the standard deviation of samples of N(0, 0.5^2) by the reverse-time equations, for each number of levels; exact: 0.5;
- the error of a Gaussian's negative log-likelihood by the probability flow, in nats per dimension;
- a mixture guided by its exact classifier at scale 1: the share of samples on the side of the requested class, for
  batches of 1 and 64, beside samples of that class alone;
- the error of the posterior mean of a Gaussian given a measurement, by DPS and PiGDM, relative to the shift of the mean
  by the measurement.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

import diffusers_fn as dfn
from diffusers_fn import Level, grids, guidance, likelihood, oracles, processes, solvers
from experiments import runs
from experiments.files import write_atomically, write_text

__all__ = [
    "PROCESSES",
    "STD",
    "class_shares",
    "draw",
    "likelihoods",
    "main",
    "posterior_errors",
    "spreads",
]

STD = 0.5
PROCESSES = {"VP": processes.vp(), "sub-VP": processes.sub_vp(), "VE": processes.ve(0.01, 10.0)}


def spreads(sizes: list[int]) -> dict[str, Any]:
    """Returns the standard deviation of samples per process and solver, by an exact recursion over the steps."""
    figures: dict[str, Any] = {"levels": sizes}
    for name, process in PROCESSES.items():
        for method in ("reverse_diffusion", "euler_maruyama"):
            found = []
            for size in sizes:
                plan = grids.uniform_t(process, size)
                t = np.linspace(process.t_max, process.t_min, size)
                made = (
                    solvers.reverse_diffusion(plan)
                    if method == "reverse_diffusion"
                    else solvers.euler_maruyama(process, t)
                )
                found.append(float(oracles.marginal_moments(made, 0.0, STD)[1]))
            figures[f"{name}, {method}"] = found
    return figures


def likelihoods(sizes: list[int]) -> dict[str, Any]:
    """Returns |error| of the negative log-likelihood per process, in nats per dimension, with the exact trace."""
    figures: dict[str, Any] = {"levels": sizes}
    for name, process in PROCESSES.items():
        found = []
        for size in sizes:
            levels = grids.uniform_log_snr(process, size)
            std = float(np.hypot(levels.alpha[-1] * STD, levels.sigma[-1]))
            x = std * jnp.linspace(-2.0, 2.0, 8).reshape(4, 2)
            result = likelihood.log_prob(
                None,
                oracles.gaussian(0.0, STD),
                levels,
                x,
                trace=likelihood.exact_trace(),
                prior=likelihood.gaussian_prior(0.0, STD),
                process=process,
            )
            wanted = jax.scipy.stats.norm.logpdf(x, 0.0, std).sum(axis=1)
            found.append(float(jnp.abs(result.log_prob - wanted).max() / 2))
        figures[name] = found
    return figures


def class_shares(num_samples: int = 512) -> dict[str, float]:
    """Returns the share of samples on the side of their class, of a guided mixture and of the class alone."""
    weights, means, stds = jnp.array([0.5, 0.5]), jnp.array([[-0.5], [0.5]]), jnp.array([0.4, 0.4])
    levels = grids.karras(40)
    solver = solvers.heun(levels)
    z = levels.sigma[0] * jax.random.normal(jax.random.key(0), (num_samples, 1))

    def log_prob(x: jax.Array, level: Level) -> jax.Array:
        centre, spread = level.alpha * means[:, 0], jnp.sqrt((level.alpha * stds) ** 2 + level.sigma**2)
        each = jnp.log(weights)[None] + jax.scipy.stats.norm.logpdf(x, centre[None], spread[None])
        return jax.nn.log_softmax(each, axis=-1)[:, 1]

    guided = guidance.classifier(log_prob, 1.0)(oracles.mixture(weights, means, stds))
    share = lambda x: float(jnp.mean(x > 0))  # noqa: E731
    run = jax.jit(lambda x: dfn.sample(None, guided, solver, x).x0)
    alone = jax.jit(jax.vmap(lambda x: dfn.sample(None, guided, solver, x[None]).x0[0]))
    one_class = dfn.sample(None, oracles.gaussian(0.5, 0.4), solver, z).x0
    in_parts = jnp.concatenate([run(part) for part in jnp.split(z, num_samples // 64)])
    return {"class alone": share(one_class), "guided, B = 64": share(in_parts), "guided, B = 1": share(alone(z))}


def posterior_errors(sizes: list[int]) -> dict[str, Any]:
    """Returns the error of the samples' mean relative to its shift by a measurement of the first of two entries."""
    y, noise = jnp.full((4_096, 1), 0.8), 0.5
    exact = 0.8 * STD**2 / (STD**2 + noise**2)
    operator = lambda x: x[:, :1]  # noqa: E731
    transforms = {
        "PiGDM": guidance.pigdm(operator, y, noise_std=noise, data_std=STD),
        "DPS": guidance.dps(operator, y, noise_std=noise),
    }
    figures: dict[str, Any] = {"levels": sizes}
    for name, transform in transforms.items():
        denoise, found = transform(oracles.gaussian(0.0, STD)), []
        for size in sizes:
            levels = grids.karras(size)
            x = levels.sigma[0] * jax.random.normal(jax.random.key(1), (4_096, 2))
            run = jax.jit(lambda solver, x, denoise=denoise: dfn.sample(jax.random.key(2), denoise, solver, x).x0)
            mean = float(run(solvers.ancestral(levels), x)[:, 0].mean())
            found.append(abs(mean - exact) / exact)
        figures[name] = found
    return figures


def draw(figures: dict[str, Any], path: Path) -> None:
    """Writes the picture with one panel per check."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    spread, nll, classes, posterior = figure.subplots(2, 2).ravel()
    for ax, part, ylabel in (
        (spread, figures["spread"], "std of samples, exact 0.5"),
        (nll, figures["likelihood"], "|error|, nats per dimension"),
        (posterior, figures["posterior"], "relative error of the posterior mean"),
    ):
        for name, values in part.items():
            if name != "levels":
                ax.plot(part["levels"], values, marker=".", label=name)
        ax.set(xlabel="levels", ylabel=ylabel, xscale="log")
        ax.legend(fontsize="small")
        ax.grid(alpha=0.3)
    spread.axhline(STD, color="0.5", linewidth=0.8)
    nll.set_yscale("log")
    posterior.set_yscale("log")
    classes.bar(list(figures["classes"]), list(figures["classes"].values()))
    classes.set(ylabel="share of samples with x > 0", ylim=(0.8, 1.0))
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def main() -> None:
    """Computes, writes and prints the figures."""
    output = flags.FLAGS.output
    output.mkdir(parents=True, exist_ok=True)
    sizes = [int(size) for size in flags.FLAGS.sizes]
    figures = {
        "spread": spreads(sizes),
        "likelihood": likelihoods([min(size, 160) for size in sizes]),
        "classes": class_shares(),
        "posterior": posterior_errors(sizes),
    }
    write_text(output / "exact_checks.json", json.dumps(figures, indent=2) + "\n")
    draw(figures, output / "exact_checks.png")
    print(json.dumps(figures, indent=2))
    print(f"written to {output / 'exact_checks.json'} and {output / 'exact_checks.png'}")


if __name__ == "__main__":
    runs.define_path("output", "runs/exact", "Folder for exact_checks.json and exact_checks.png.")
    flags.DEFINE_list("sizes", ["20", "50", "100", "200", "500", "1000"], "Comma-separated numbers of noise levels.")
    valid = lambda sizes: bool(sizes) and all(size.isdecimal() and int(size) >= 2 for size in sizes)  # noqa: E731
    flags.register_validator("sizes", valid, "must be comma-separated integers of at least 2")
    runs.run_without_config(main)
