"""Ancestral sampling on the timesteps of the loop: DDPM and UnCLIP.

Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239, algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn import variances
from diffusers_fn.levels import append, posterior
from diffusers_fn.pretrained.schedulers.heads import PREDICTIONS, circle, clipping
from diffusers_fn.pretrained.schedulers.kinds import CLIP, SPACING, TABLE, THRESHOLD, Grid, Kind, Options, steps
from diffusers_fn.pretrained.schedulers.spacings import NAMES, given_timesteps, timesteps_with_end
from diffusers_fn.pretrained.schedulers.tables import alphas_cumprod, at_timesteps, clean
from diffusers_fn.solvers.base import Solver, linear_solver

__all__ = ["KINDS"]

_VARIANCES = {
    "fixed_small": variances.fixed_small,
    "fixed_small_log": variances.fixed_small,
    "fixed_large": variances.fixed_large,
    "learned_range": variances.learned_range,
}
_REFUSED = {
    "fixed_large_log": "the reference takes the square root of a logarithm, which is not a number: use fixed_large",
    "learned": "the reference takes the square root of the network's output as it is, which is no log variance: "
    "use learned_range",
}


def _check(options: Options) -> None:
    if (reason := _REFUSED.get(options["variance_type"])) is not None:
        raise ValueError(f"variance_type {options['variance_type']!r} is not available: {reason}")


def _grid(options: Options, num_steps: int, run: Options) -> Grid:
    timesteps = given_timesteps(run, options, num_steps)
    if timesteps is None:
        timesteps = timesteps_with_end(options, num_steps)
    return Grid(at_timesteps(alphas_cumprod(options), timesteps), clean())


def _unclip_grid(options: Options, num_steps: int, run: Options) -> Grid:
    total = options["num_train_timesteps"]
    if num_steps < 2:
        raise ValueError(f"UnCLIPScheduler takes at least 2 steps; got {num_steps}")
    timesteps = (np.arange(num_steps) * ((total - 1) / (num_steps - 1))).round()[::-1]
    return Grid(at_timesteps(alphas_cumprod({**TABLE, **options}), timesteps), clean())


def _ancestral(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = coef_x0 x0_hat + coef_x x + s z; the step out of a last timestep above 0 has noise in the reference too."""
    start, end = steps(grid, first)
    coef_x0, coef_x, _ = posterior(start, end)
    with np.errstate(divide="ignore"):
        noise, noise_range = _VARIANCES[options["variance_type"]].between(start, end)
    last = start.t[-1] > 0 and options["variance_type"] in ("fixed_large", "learned_range")
    levels, rows = (append(start, start[-1]), slice(None)) if last else (start, slice(None, -1))
    if last and noise_range is not None:  # the reference bounds the variance below by 1e-20
        noise_range[-1] = np.log(start.sigma[-1] / 1e-10)
        noise[-1] = 1e-10
    table = linear_solver(
        levels,
        x=[coef_x[rows]],
        x0=coef_x0[rows],
        eps=0.0,
        noise=noise[rows],
        noise_range=None if noise_range is None else noise_range[rows],
    )
    return table, not last


_OPTIONS: dict[str, Any] = {
    **TABLE,
    **SPACING,
    **CLIP,
    **THRESHOLD,
    "timestep_spacing": "leading",
    "variance_type": "fixed_small",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}

_DDPM = Kind(
    options=_OPTIONS,
    choices={
        "prediction_type": PREDICTIONS,
        "timestep_spacing": NAMES,
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
        "variance_type": (*_VARIANCES, *_REFUSED),
    },
    parameterization=circle,
    grid=_grid,
    solver=_ancestral,
    run={"timesteps": None},
    transform=clipping,
    check=_check,
)

KINDS = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "UnCLIPScheduler": _DDPM._replace(
        options={
            **CLIP,
            "num_train_timesteps": 1000,
            "variance_type": "fixed_small_log",
            "prediction_type": "epsilon",
            "beta_schedule": "squaredcos_cap_v2",
        },
        choices={
            "prediction_type": ("epsilon", "sample"),
            "beta_schedule": ("squaredcos_cap_v2",),
            "variance_type": ("fixed_small_log", "learned_range"),
        },
        grid=_unclip_grid,
        run={},
        check=lambda options: None,
    ),
}
