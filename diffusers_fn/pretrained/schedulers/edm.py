"""Schedulers of EDM networks: Euler with churn, DPM-Solver++, and its stochastic form on the cosine time.

Karras et al. 2022, https://arxiv.org/abs/2206.00364: alpha = 1, and the network returns F.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_fn.pretrained.schedulers.dpm import SOLVER_TYPES, check_solver, multistep
from diffusers_fn.pretrained.schedulers.heads import preconditioned, thresholding
from diffusers_fn.pretrained.schedulers.kinds import THRESHOLD, Grid, Kind, Options, solver_from_steps, steps
from diffusers_fn.pretrained.schedulers.sigma_space import CHURN, churned
from diffusers_fn.pretrained.schedulers.spacings import exponential_sigmas, karras_sigmas
from diffusers_fn.pretrained.schedulers.tables import at_ratio, clean
from diffusers_fn.solvers.base import Solver

__all__ = ["KINDS"]


def _labelled_grid(
    options: Options, num_steps: int, run: Options, *, label: Callable[[np.ndarray], np.ndarray]
) -> Grid:
    """EDM's sigmas, or those at the given numbers in [0, 1] (`sigmas`, as the reference calls them)."""
    low, high, ramp = options["sigma_min"], options["sigma_max"], run.get("sigmas")
    num_steps = num_steps if ramp is None else len(ramp)
    if options["sigma_schedule"] == "karras":
        sigmas = karras_sigmas(low, high, num_steps if ramp is None else ramp, options["rho"])
    else:
        sigmas = exponential_sigmas(low, high, num_steps)
    repeats = options["final_sigmas_type"] == "sigma_min"
    end = at_ratio(sigmas[-1] * (1.0 - 1e-10), 0.0, space="ve") if repeats else clean()
    return Grid(at_ratio(sigmas, label(sigmas), space="ve"), end, num_sigmas=num_steps, repeats=repeats)


def _grid(options: Options, num_steps: int, run: Options) -> Grid:
    return _labelled_grid(options, num_steps, run, label=lambda sigma: 0.25 * np.log(sigma))


def _cosine_grid(options: Options, num_steps: int, run: Options) -> Grid:
    return _labelled_grid(options, num_steps, run, label=lambda sigma: np.arctan(sigma) / np.pi * 2.0)


def _euler(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """Euler's method from the churned state x^ = x + n z, with the network's output F at x before the noise.

    x0 = c_skip(sigma^) x^ + c_out(sigma^) F,   x' = x^ + (sigma' - sigma^) (x^ - x0) / sigma^
    """
    start, end = steps(grid, first)
    raised, noise = churned(start.sigma, grid, run)
    if not np.any(noise):
        return solver_from_steps(start, end, x=[0.0], x0=1.0, eps=end.sigma)
    data = options["sigma_data"]
    c_skip = data**2 / (raised**2 + data**2)
    c_out = raised * data / np.sqrt(raised**2 + data**2) * (1.0 if options["prediction_type"] == "epsilon" else -1.0)
    p, q = preconditioned(options).line(start)
    ratio = end.sigma / raised
    x, gain = ratio + (1.0 - ratio) * c_skip, (1.0 - ratio) * c_out
    return solver_from_steps(start, end, x=[x], x0=gain * p, eps=gain * q, noise=x * noise, denoises=False)


def _stochastic(options: Options) -> Options:
    return {**options, "algorithm_type": "sde-dpmsolver++"}


_OPTIONS: dict[str, Any] = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_ORDERS = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False}
_CHOICES = {
    "prediction_type": ("epsilon", "v_prediction"),
    "sigma_schedule": ("karras", "exponential"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
    "solver_type": SOLVER_TYPES,
}
_EULER = Kind(
    options=_OPTIONS,
    choices=_CHOICES,
    parameterization=preconditioned,
    grid=_grid,
    solver=_euler,
    run={**CHURN, "sigmas": None},
    init_scale=lambda options, grid: float(np.sqrt(options["sigma_max"] ** 2 + 1.0)),
)

KINDS = {
    "EDMEulerScheduler": _EULER,
    "EDMDPMSolverMultistepScheduler": _EULER._replace(
        options={**_OPTIONS, **_ORDERS, **THRESHOLD, "algorithm_type": "dpmsolver++"},
        solver=multistep,
        run={},
        transform=thresholding,
        check=check_solver,
    ),
    "CosineDPMSolverMultistepScheduler": _EULER._replace(
        options={
            **_OPTIONS,
            **_ORDERS,
            "sigma_min": 0.3,
            "sigma_max": 500.0,
            "sigma_data": 1.0,
            "sigma_schedule": "exponential",
            "prediction_type": "v_prediction",
        },
        grid=_cosine_grid,
        solver=lambda options, grid, first, run: multistep(_stochastic(options), grid, first, run),
        run={},
        check=lambda options: check_solver(_stochastic(options), 2),
    ),
}
