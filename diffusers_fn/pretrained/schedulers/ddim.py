"""DDIM and its relatives, whose steps end at t - T // N, whether that is the next timestep or not.

Song et al., "Denoising Diffusion Implicit Models", 2021, https://arxiv.org/abs/2010.02502, eq. 12 and 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import check_eta
from diffusers_fn.denoisers import Transform
from diffusers_fn.levels import Level, posterior
from diffusers_fn.noise_schedules import zero_terminal_snr
from diffusers_fn.pretrained.schedulers.heads import PREDICTIONS, circle, clipping
from diffusers_fn.pretrained.schedulers.kinds import (
    CLIP,
    SPACING,
    TABLE,
    THRESHOLD,
    Grid,
    Kind,
    Options,
    solver_from_steps,
    steps,
)
from diffusers_fn.pretrained.schedulers.spacings import NAMES, timesteps_with_end
from diffusers_fn.pretrained.schedulers.tables import alphas_cumprod, at_timesteps
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import data_prediction, exponential_step

__all__ = ["KINDS"]


def _stride(options: Options, num_steps: int) -> int:
    return int(options["num_train_timesteps"] // num_steps)


def _grid(options: Options, num_steps: int, run: Options) -> Grid:
    return _strided(options, num_steps, alphas_cumprod(options))


def _strided(options: Options, num_steps: int, table: np.ndarray) -> Grid:
    """The levels of the timesteps, and for each the one T // N below."""
    timesteps = timesteps_with_end(options, num_steps)
    before = 1.0 if options["set_alpha_to_one"] else float(table[0])
    ends = at_timesteps(table, timesteps - _stride(options, num_steps), before)
    return Grid(at_timesteps(table, timesteps), ends[-1], ends)


def _ddim(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = alpha' x0_hat + sqrt(sigma'^2 - s^2) eps_hat + s z, s = eta sqrt(posterior variance)."""
    check_eta(run["eta"])
    start, end = steps(grid, first)
    noise = run["eta"] * np.sqrt(np.maximum(posterior(start, end)[2], 0.0))
    eps = np.sqrt(np.maximum(end.sigma**2 - noise**2, 0.0))
    return solver_from_steps(start, end, x=[0.0], x0=end.alpha, eps=eps, noise=noise)


def _keeping_eps(options: Options, run: Options) -> Transform | None:
    return clipping(options, run, keep_eps=not run["use_clipped_model_output"])


def _video_grid(options: Options, num_steps: int, run: Options) -> Grid:
    """CogVideoX: alpha_bar with its SNR divided by snr_shift_scale, then rescaled to zero terminal SNR."""
    table = alphas_cumprod({**options, "rescale_betas_zero_snr": False})
    scale = options["snr_shift_scale"]
    table = table / (scale + (1.0 - scale) * table)
    if options["rescale_betas_zero_snr"]:
        betas = 1.0 - table / np.concatenate([[1.0], table[:-1]])
        table = np.append(np.cumprod(1.0 - zero_terminal_snr(betas))[:-1], 0.0)
    return _strided(options, num_steps, table)


def _video_dpm(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """DPM-Solver++(2M) of the reverse SDE, with lengths of the earlier steps measured between timesteps."""
    start, end = steps(grid, first)
    inner = slice(None, -1) if end.sigma[-1] == 0 else slice(None)
    step = exponential_step(start[inner], end[inner], data_prediction, 1.0)
    lam = np.log(start.alpha / start.sigma)
    backward = np.append(0.0, np.diff(lam))[: step.h.size]  # from the timestep before to this one
    orders = np.where((np.arange(step.h.size) == 0) | (grid.ends.t[first:][inner] < 0), 1, 2)  # type: ignore[union-attr]
    inverse = np.where(orders == 2, step.h / np.where(backward == 0, np.inf, backward), 0.0)
    second = 0.5 * step.w0 * inverse
    pad = (lambda a: np.append(a, 0.0)) if end.sigma[-1] == 0 else (lambda a: a)
    m = [pad(step.w0 + second), pad(-second)]
    return solver_from_steps(start, end, x=[pad(step.x)], x0=1.0, eps=0.0, m=m, noise=pad(step.noise))


def _inverse_grid(options: Options, num_steps: int, run: Options) -> Grid:
    """Rising levels: a step leads from t - T // N to t, and the network gets the label t of its end."""
    if options["timestep_spacing"] == "linspace":
        raise ValueError("DDIMInverseScheduler has no timestep_spacing 'linspace': use leading or trailing")
    table = alphas_cumprod(options)
    timesteps = timesteps_with_end(options, num_steps)[::-1]
    before = 1.0 if options["set_alpha_to_one"] else float(table[0])
    start = at_timesteps(table, np.minimum(timesteps - _stride(options, num_steps), table.size - 1), before)
    if options["prediction_type"] == "sample" and np.any(start.sigma == 0):
        raise ValueError(
            "prediction_type 'sample' does not determine eps on clean data (the reference computes 0 / 0): "
            "set_alpha_to_one must be false"
        )
    ends = at_timesteps(table, timesteps)
    return Grid(Level(start.alpha, start.sigma, timesteps), ends[-1], ends)


def _inverse(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    start, end = steps(grid, first)
    return solver_from_steps(start, end, x=[0.0], x0=end.alpha, eps=end.sigma, denoises=False)


_OPTIONS: dict[str, Any] = {
    **TABLE,
    **SPACING,
    **CLIP,
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
_CHOICES = {
    "prediction_type": PREDICTIONS,
    "timestep_spacing": NAMES,
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}

_DDIM = Kind(
    options={**_OPTIONS, **THRESHOLD},
    choices=_CHOICES,
    parameterization=circle,
    grid=_grid,
    solver=_ddim,
    run={"eta": 0.0, "use_clipped_model_output": False},
    transform=_keeping_eps,
)

_VIDEO = Kind(
    # clip_sample and sample_max_value are not used by these classes
    options={**_OPTIONS, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "sample_max_value": 1.0, "snr_shift_scale": 3.0},
    choices=_CHOICES,
    parameterization=circle,
    grid=_video_grid,
    solver=lambda options, grid, first, run: _ddim(options, grid, first, {"eta": 0.0}),
)  # fmt: skip

KINDS = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDIMInverseScheduler": _DDIM._replace(
        options=_OPTIONS,
        grid=_inverse_grid,
        solver=_inverse,
        run={},
        transform=lambda options, run: clipping(options, run, keep_eps=True),
    ),
    "CogVideoXDDIMScheduler": _VIDEO,
    "CogVideoXDPMScheduler": _VIDEO._replace(solver=_video_dpm),
}
