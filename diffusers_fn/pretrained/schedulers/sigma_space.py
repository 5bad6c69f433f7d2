"""The schedulers in sigma with alpha = 1: Euler, Euler ancestral, Heun, LMS, DPM2, DPM2 ancestral, DPM-Solver++(SDE).

x = x0 + sigma eps, and the network gets x / sqrt(sigma^2 + 1). They are samplers of Katherine Crowson's k-diffusion,
https://github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from diffusers_fn._arrays import check_number
from diffusers_fn._types import Array
from diffusers_fn.denoisers import Transform
from diffusers_fn.levels import Level
from diffusers_fn.pretrained.schedulers.heads import clipping, scaled_input
from diffusers_fn.pretrained.schedulers.kinds import (
    CLIP,
    GRIDS,
    Grid,
    Kind,
    Options,
    check_order,
    plan_levels,
    solver_from_steps,
    steps,
)
from diffusers_fn.pretrained.schedulers.sigma_grids import (
    CHOICES,
    LATENT,
    OPTIONS,
    init_scale,
    labels_at,
    sigma_grid,
)
from diffusers_fn.pretrained.schedulers.tables import at_ratio
from diffusers_fn.solvers.adams import lagrange_integrals
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.exponential import noise_prediction
from diffusers_fn.solvers.runge_kutta import heun
from diffusers_fn.solvers.singlestep import second_order
from diffusers_fn.solvers.stages import solver_from_stages

__all__ = ["CHURN", "KINDS", "churned"]

CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": np.inf, "s_noise": 1.0}


def churned(sigma: Array, grid: Grid, run: Options) -> tuple[Array, Array]:
    """Returns (sigma^, the standard deviation of the noise that leads there), [N] each.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2, with gamma = min(s_churn / N, sqrt(2) - 1).
    """
    for name in ("s_churn", "s_tmin", "s_noise"):
        check_number(name, run[name])
    gamma = min(run["s_churn"] / grid.num_sigmas, 2**0.5 - 1.0)
    gamma = np.where((sigma >= run["s_tmin"]) & (sigma <= run["s_tmax"]), gamma, 0.0)
    raised = sigma * (gamma + 1.0)
    return raised, run["s_noise"] * np.sqrt(raised**2 - sigma**2)


def _euler(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """Euler's method from the churned state, with the network's output at the state before the noise.

    With x^ = x + n z the reference computes x0 from the same output at x^ and sigma^ (at sigma, for a v), and

        x' = x^ + (sigma' - sigma^) (x^ - x0) / sigma^

    Without noise that is x' = x0_hat + sigma' eps_hat, which does not cancel where sigma is in the thousands (zero
    terminal SNR: 4,096). For epsilon (x^ - x0) / sigma^ = eps; otherwise x0 = x0_hat + c n z, with c of the formula of
    x0.
    """
    start, end = steps(grid, first)
    raised, noise = churned(start.sigma, grid, run)
    if not np.any(noise):
        return solver_from_steps(start, end, x=[0.0], x0=1.0, eps=end.sigma)
    if options["prediction_type"] == "epsilon":
        eps = end.sigma + start.sigma - raised
        return solver_from_steps(start, end, x=[0.0], x0=1.0, eps=eps, noise=noise, denoises=False)
    ratio = end.sigma / raised
    of_noise = 1.0 / (start.sigma**2 + 1.0) if options["prediction_type"] == "v_prediction" else 0.0
    return solver_from_steps(
        start, end, x=[ratio], x0=1.0 - ratio, eps=0.0, noise=noise * (ratio + (1.0 - ratio) * of_noise), denoises=False
    )


def _euler_ancestral(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = x0_hat + sigma_down eps_hat + sigma_up z."""
    start, end = steps(grid, first)
    down, up = _ancestral(start.sigma, end.sigma)
    return solver_from_steps(start, end, x=[0.0], x0=1.0, eps=down, noise=up)


def _ancestral(sigma: Array, to: Array) -> tuple[Array, Array]:
    """(sigma_down, sigma_up), with sigma_down^2 + sigma_up^2 = to^2."""
    return to**2 / sigma, to * np.sqrt(np.maximum(1.0 - (to / sigma) ** 2, 0.0))


def _heun(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    levels, final_denoise = plan_levels(grid, first)
    return heun(levels), final_denoise


def _clipped(options: Options, run: Options) -> Transform | None:
    return clipping(options, run)


def _lms(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = x + sum_k eps_k int L_k d sigma, to sigma = 0 too.

    A loop that begins in the middle has the weights of its full order from its first step on, though the values that
    they belong to are not there yet: the reference's, which drops these terms.
    """
    start, end = steps(grid, first)
    check_order(run, "order", 4)
    total, order = grid.levels.sigma.size, run["order"]
    sigmas = np.append(grid.levels.sigma, grid.end.sigma)
    columns = lagrange_integrals(sigmas, np.minimum(np.arange(total) + 1, order), order, lambda u: 1.0 + 0.0 * u)
    there = np.arange(total - first)
    m = [np.where(there >= k, column[first:], 0.0) for k, column in enumerate(columns)]
    return solver_from_steps(start, end, x=[1.0], x0=0.0, eps=1.0, m=m, denoises=False)


def _dpm2(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """DPM2: the middle of a step halfway in log(sigma), and its label there too."""
    start, end = grid.levels[first:-1], grid.levels[first + 1 :]
    middle = np.sqrt(start.sigma * end.sigma)
    inside = at_ratio(middle, labels_at(options, middle), space="ve")
    return solver_from_stages([second_order(start, inside, end, noise_prediction)], grid.levels[-1:]), True


def _dpm2_ancestral(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    start, end = grid.levels[first:-1], grid.levels[first + 1 :]
    down, up = _ancestral(start.sigma, end.sigma)
    middle = np.sqrt(start.sigma * down)
    inside = at_ratio(middle, labels_at(options, middle), space="ve")
    *before, last = second_order(start, inside, Level(end.alpha, down, end.t), noise_prediction)
    return solver_from_stages([[*before, last._replace(noise=up)]], grid.levels[-1:]), True


def _dpm_sde(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """DPM-Solver++(SDE): two ancestral steps in exponential form from the same state, the second with the middle's x0.

    Their noises are increments of one Brownian motion in sigma, so that the noise z of the first is part of the second,
    with correlation c = sqrt((sigma - middle) / (sigma - sigma')). It is read off the state in the middle.
    """
    check_number("s_noise", run["s_noise"])
    start, end = grid.levels[first:-1], grid.levels[first + 1 :]
    middle = np.sqrt(start.sigma * end.sigma)
    inside = at_ratio(middle, labels_at(options, middle), space="ve")
    (down, up), (down_end, up_end) = _ancestral(start.sigma, middle), _ancestral(start.sigma, end.sigma)
    up, up_end = run["s_noise"] * up, run["s_noise"] * up_end
    ratio, ratio_end = down / start.sigma, down_end / start.sigma
    c = np.sqrt((start.sigma - middle) / (start.sigma - end.sigma))
    carried = c * up_end / up if run["s_noise"] > 0 else 0.0 * c
    one, none = np.ones_like(middle), np.zeros_like(middle)

    def rows(a: Any, b: Any) -> np.ndarray:
        return np.stack([np.broadcast_to(a, middle.shape), np.broadcast_to(b, middle.shape)], axis=1).ravel()

    visited = Level(*(rows(getattr(start, f), getattr(inside, f)) for f in ("alpha", "sigma", "t")))
    last = grid.levels[-1:]
    table = linear_solver(
        Level(*(np.concatenate([getattr(visited, f), getattr(last, f)]) for f in ("alpha", "sigma", "t"))),
        x=[rows(ratio, carried), rows(none, ratio_end - carried * ratio)],
        x0=rows(one, one),
        eps=0.0,
        m=[rows(1.0 - ratio, 1.0 - ratio_end), rows(none, -carried * (1.0 - ratio))],
        noise=rows(up, up_end * np.sqrt(1.0 - c**2)),
    )
    return table, True


_EULER = Kind(
    options={
        **OPTIONS,
        **GRIDS,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    },
    choices={**CHOICES, "prediction_type": ("epsilon", "sample", "original_sample", "v_prediction")},
    parameterization=lambda options: scaled_input(
        {**options, "prediction_type": options["prediction_type"].replace("original_", "")}
    ),
    grid=sigma_grid,
    solver=_euler,
    run={**CHURN, "timesteps": None, "sigmas": None},
    init_scale=init_scale,
)
_TWO_STAGES = _EULER._replace(options=LATENT, choices=CHOICES, parameterization=scaled_input, run={}, order=2)
_WHOLE = functools.partial(sigma_grid, whole=True)
_NO_SAMPLE = {**CHOICES, "prediction_type": ("epsilon", "v_prediction")}

KINDS = {
    "EulerDiscreteScheduler": _EULER,
    "EulerAncestralDiscreteScheduler": _EULER._replace(
        options={**OPTIONS, "rescale_betas_zero_snr": False}, choices=_NO_SAMPLE, solver=_euler_ancestral, run={}
    ),
    "HeunDiscreteScheduler": _TWO_STAGES._replace(
        options={**LATENT, **CLIP, "clip_sample": False},
        choices={**CHOICES, "beta_schedule": (*CHOICES["beta_schedule"], "exp")},
        solver=_heun,
        run={"timesteps": None},
        transform=_clipped,
    ),
    "LMSDiscreteScheduler": _EULER._replace(
        options={**OPTIONS, **GRIDS},
        choices=CHOICES,
        parameterization=scaled_input,
        solver=_lms,
        run={"order": 4},
    ),
    "KDPM2DiscreteScheduler": _TWO_STAGES._replace(choices=_NO_SAMPLE, grid=_WHOLE, solver=_dpm2),
    "KDPM2AncestralDiscreteScheduler": _TWO_STAGES._replace(choices=_NO_SAMPLE, grid=_WHOLE, solver=_dpm2_ancestral),
    "DPMSolverSDEScheduler": _TWO_STAGES._replace(
        # the seed of the reference's noise: here the noise is that of the key
        options={**LATENT, "noise_sampler_seed": None},
        choices=_NO_SAMPLE,
        solver=_dpm_sde,
        run={"s_noise": 1.0},
    ),
}
