"""Plots the error of every solver over network evaluations, on a Gaussian mixture with a known exact solution.

    python -m experiments.compare_solvers --output=runs/solvers

Writes solvers.png and solvers.json. The error of a deterministic solver is the root mean square distance to the exact
probability flow, that of a stochastic solver the Wasserstein distance of its samples to the exact distribution; both at
the last noisy level of a variance-preserving process, in double precision.

SOLVERS has every solver of the config table, `diffusers_fn.from_config.samplers.SOLVERS`, that has an order of
convergence or exact moments, and further variants. A new solver is one line in the config table: this figure and
tests/solvers/test_all_solvers.py (with `oracles.check_solver`) read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy.special import ndtri
from tqdm import tqdm

from diffusers_fn import Level, Solver, default_config, grids, oracles, processes, sample, solvers, variances
from diffusers_fn.from_config.samplers import SOLVERS as TABLE
from diffusers_fn.from_config.samplers import SolverEntry, SolverInputs
from diffusers_fn.processes import Process
from experiments import runs
from experiments.files import write_atomically, write_text

__all__ = [
    "MAX_EVALUATIONS",
    "MEANS",
    "NOISE_PREDICTION",
    "NUM_PATHS",
    "NUM_SAMPLES",
    "SIZES",
    "SOLVERS",
    "STDS",
    "WEIGHTS",
    "Entry",
    "distribution_error",
    "draw",
    "evaluations",
    "flow_error",
    "from_table",
    "levels_only",
    "main",
    "measure",
    "mixture_quantiles",
    "run",
    "with_process",
]

WEIGHTS, MEANS, STDS = np.array([0.35, 0.65]), np.array([-0.8, 0.6]), np.array([0.15, 0.3])
SIZES = (5, 8, 12, 18, 27, 40, 60, 90, 135, 200)  # numbers of levels
MAX_EVALUATIONS = 256
NUM_PATHS, NUM_SAMPLES = 256, 50_000


class Entry(NamedTuple):
    """An entry of SOLVERS.

    Attributes:
      make: (levels, process) -> Solver.
      order: order of convergence on a mixture; None for a stochastic solver.
      min_levels: smallest number of levels that the solver accepts.
      gaussian_order: order of convergence on a Gaussian, if the leading error term vanishes there.
    """

    make: Callable[[Level, Process], Solver]
    order: float | None
    min_levels: int = 2
    gaussian_order: float | None = None


def levels_only(make: Callable[..., Solver], **options: Any) -> Callable[[Level, Process], Solver]:
    """Returns (levels, process) -> Solver for a constructor that takes levels alone."""
    return lambda levels, process: make(levels, **options)


def with_process(make: Callable[..., Solver], **options: Any) -> Callable[[Level, Process], Solver]:
    """Returns (levels, process) -> Solver for a solver with stages at other levels of the process."""
    return lambda levels, process: make(levels, process=process, **options)


def from_table(entry: SolverEntry) -> Entry:
    """Returns the entry of a solver that a config can name."""
    settings = default_config().sampler

    def make(levels: Level, process: Process) -> Solver:
        return entry.make(settings, SolverInputs(levels, process, eta=0.0, variance=variances.fixed_small))

    return Entry(make, entry.order, entry.min_levels, entry.gaussian_order)


NOISE_PREDICTION = {"form": solvers.noise_prediction}
# Every solver of the config table with an order or exact moments, and further variants.
SOLVERS = {name: from_table(entry) for name, entry in TABLE.items() if entry.order or entry.exact_moments} | {
    "dpm_1": Entry(levels_only(solvers.dpmpp_1, **NOISE_PREDICTION), 1),
    "dpm_2m": Entry(levels_only(solvers.dpmpp_2m, **NOISE_PREDICTION), 2),
    "deis (2)": Entry(levels_only(solvers.deis, order=2), 2, 3),
    "deis (3)": Entry(levels_only(solvers.deis, order=3), 3, 4),
    "deis (4)": Entry(levels_only(solvers.deis, order=4), 4, 5),
    "lms (2)": Entry(levels_only(solvers.lms, order=2), 2, 3),
    "lms (3)": Entry(levels_only(solvers.lms, order=3), 3, 4),
    "lms (4)": Entry(levels_only(solvers.lms, order=4), 4, 5),
    "unipc (1)": Entry(levels_only(solvers.unipc, order=1), 2),
    "unipc (2)": Entry(levels_only(solvers.unipc, order=2), 3, 3),
    "unipc (3)": Entry(levels_only(solvers.unipc, order=3, lower_order_final=False), 4, 4),
    "dpm_solver (2)": Entry(with_process(solvers.dpm_solver, order=2), 2),
    "dpm_solver (3)": Entry(with_process(solvers.dpm_solver, order=3), 3),
    "heun_churn": Entry(with_process(solvers.heun_churn, s_churn=20.0, s_max=50.0), None),
}


def flow_error(make: Callable[[Level, Process], Solver], process: Process, num_levels: int) -> tuple[int, float]:
    """Returns (network evaluations, root mean square distance to the exact flow) of a deterministic solver."""
    levels = grids.uniform_log_snr(process, num_levels)
    first, last = levels[0], levels[-1]
    start = mixture_quantiles(first, NUM_PATHS)
    solver = make(levels, process)
    x = run(solver, jnp.asarray(start)[:, None], None)
    exact = oracles.mixture_flow(WEIGHTS, MEANS, STDS, start, first, last)
    return evaluations(solver), float(np.sqrt(np.mean((np.asarray(x)[:, 0] - exact) ** 2)))


def distribution_error(
    make: Callable[[Level, Process], Solver], process: Process, num_levels: int
) -> tuple[int, float]:
    """Returns (network evaluations, Wasserstein-1 distance of the samples to the exact marginal) of a solver."""
    levels = grids.uniform_log_snr(process, num_levels)
    first, last = levels[0], levels[-1]
    solver = make(levels, process)
    start = mixture_quantiles(first, NUM_SAMPLES)
    x = run(solver, jnp.asarray(start)[:, None], jax.random.key(0))
    return evaluations(solver), float(
        np.abs(np.sort(np.asarray(x)[:, 0]) - mixture_quantiles(last, NUM_SAMPLES)).mean()
    )


@jax.jit
def run(solver: Solver, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns the state at the last level; solvers of equal shapes share a compilation."""
    denoise = oracles.mixture(WEIGHTS, MEANS, STDS, independent=True)
    return sample(key if solver.stochastic else None, denoise, solver, x, final_denoise=False).x0


def evaluations(solver: Solver) -> int:
    """Returns the number of network evaluations of a run, the final denoising included."""
    return jax.tree.leaves(solver.rows)[0].shape[0]


def mixture_quantiles(level: Level, num: int) -> np.ndarray:
    """Returns the quantiles (i + 1/2) / num of the marginal at a level, by the flow of the quantiles of pure noise."""
    normal = ndtri((np.arange(num) + 0.5) / num)
    # The flow is smooth: quantiles are interpolated in a table of it.
    nodes = np.linspace(normal[0], normal[-1], min(num, 4001))
    flowed = oracles.mixture_flow(WEIGHTS, MEANS, STDS, nodes, Level(0.0, 1.0, 0.0), level)
    return np.interp(normal, nodes, flowed)


def measure(process: Process, names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns {solver: {"order", "evaluations", "error"}} over SIZES."""
    figures: dict[str, dict[str, Any]] = {}
    for name in tqdm(names, desc="solvers"):
        entry, points = SOLVERS[name], []
        for num_levels in SIZES:
            if num_levels >= max(entry.min_levels, 2):
                count = evaluations(entry.make(grids.uniform_log_snr(process, num_levels), process))
                if count <= MAX_EVALUATIONS:
                    error = distribution_error if entry.order is None else flow_error
                    points.append(error(entry.make, process, num_levels))
        counts, errors = zip(*points)
        figures[name] = {"order": entry.order, "evaluations": counts, "error": errors}
    return figures


def draw(path: Path, figures: dict[str, dict[str, Any]]) -> None:
    """Writes the picture: one panel per order of convergence and one for the stochastic solvers."""
    panels = {
        "order 1": lambda order: order == 1,
        "order 2": lambda order: order == 2,
        "order 3 and 4": lambda order: order is not None and order > 2,
        "stochastic": lambda order: order is None,
    }
    figure = Figure(figsize=(13, 10), layout="constrained")
    for axes, (title, belongs) in zip(figure.subplots(2, 2).flat, panels.items()):
        for i, (name, curve) in enumerate((n, c) for n, c in figures.items() if belongs(c["order"])):
            style = {"marker": "osD^v"[i % 5], "linestyle": "-" if i < 10 else "--", "markersize": 4, "linewidth": 1.2}
            axes.plot(curve["evaluations"], curve["error"], label=name, color=f"C{i % 10}", **style)
        if title == "stochastic":
            spread = np.sqrt(WEIGHTS @ (STDS**2 + (MEANS - WEIGHTS @ MEANS) ** 2))
            axes.axhline(
                spread / NUM_SAMPLES**0.5, color="0.6", linestyle=":", label="about the distance of exact samples"
            )
            axes.set_ylabel("Wasserstein distance to the exact distribution")
        else:
            axes.set_ylabel("distance to the exact flow (rms)")
        axes.set(xscale="log", yscale="log", xlabel="network evaluations", title=title)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, ncols=2)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))


def main() -> None:
    """Measures all solvers and writes both files."""
    jax.config.update("jax_enable_x64", True)
    output, begin = flags.FLAGS.output, time.time()
    figures = measure(processes.vp(), list(SOLVERS))
    write_text(output / "solvers.json", json.dumps(figures, indent=1) + "\n")
    draw(output / "solvers.png", figures)
    print(f"{len(figures)} solvers in {time.time() - begin:.0f} s: {output / 'solvers.png'}, {output / 'solvers.json'}")


if __name__ == "__main__":
    runs.define_path("output", "runs/solvers", "Folder for solvers.png and solvers.json.")
    runs.run_without_config(main)
