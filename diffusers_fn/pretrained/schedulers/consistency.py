"""Schedulers of consistency models: LCM, TCD, CM (stochastic iterative), sCM (TrigFlow).

Song et al. 2023, https://arxiv.org/abs/2303.01469; Luo et al. 2023, https://arxiv.org/abs/2310.04378; Zheng et al.
2024, https://arxiv.org/abs/2402.19159; Lu & Song 2024, https://arxiv.org/abs/2410.11081.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization, unit_input
from diffusers_fn.pretrained.schedulers.heads import PREDICTIONS, circle, clipping, consistent, denoised
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
from diffusers_fn.pretrained.schedulers.spacings import NAMES, given_timesteps, karras_sigmas
from diffusers_fn.pretrained.schedulers.tables import alphas_cumprod, at_ratio, at_timesteps, clean
from diffusers_fn.solvers.base import Solver

__all__ = ["KINDS"]


def _distilled_timesteps(options: Options, num_steps: int, run: Options, *, every: bool = False) -> np.ndarray:
    """N timesteps out of the original_inference_steps that the model was distilled on.

    grid_strength is the `strength` of the reference's set_timesteps, the share of these that is used. `every`: whether
    a number of original steps that is given in the run means all timesteps (TCD).
    """
    if (timesteps := given_timesteps(run, options, num_steps)) is not None:
        return timesteps
    given, total, strength = run["original_inference_steps"], options["num_train_timesteps"], run["grid_strength"]
    original = options["original_inference_steps"] if given is None else given
    if original > total:
        raise ValueError(
            f"original_inference_steps must be at most the {total} timesteps of the schedule; got {original}"
        )
    if every and given is not None:
        candidates = np.arange(int(total * strength))
    else:
        candidates = np.arange(1, int(original * strength) + 1) * (total // original) - 1
    if not 1 <= num_steps <= min(candidates.size, original):
        raise ValueError(
            f"num_steps must be at most {min(candidates.size, original)}, the number of steps that the model was "
            f"distilled on (original_inference_steps {original}); got {num_steps}"
        )
    return candidates[::-1][np.floor(np.linspace(0, candidates.size, num_steps, endpoint=False)).astype(int)]


def _lcm_grid(options: Options, num_steps: int, run: Options) -> Grid:
    return Grid(at_timesteps(alphas_cumprod(options), _distilled_timesteps(options, num_steps, run)), clean())


def _lcm(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = alpha' D + sigma' z with D = c_skip x + c_out x0_hat; the last step returns D."""
    start, end = steps(grid, first)
    scaled, data = start.t * options["timestep_scaling"], 0.5
    c_skip, c_out = data**2 / (scaled**2 + data**2), scaled / np.sqrt(scaled**2 + data**2)
    return solver_from_steps(
        start, end, x=[end.alpha * c_skip], x0=end.alpha * c_out, eps=0.0, noise=end.sigma, denoises=False
    )


def _tcd_grid(options: Options, num_steps: int, run: Options) -> Grid:
    table = alphas_cumprod(options)
    timesteps = _distilled_timesteps(options, num_steps, run, every=True)
    return Grid(at_timesteps(table, timesteps), at_timesteps(table, np.zeros(1))[0])


def _tcd(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """DDIM to the time s = floor((1 - eta) t'), then noise up to t'; without it in the last step, and for eta = 0."""
    eta = run["eta"]
    if not 0 <= eta <= 1:
        raise ValueError(f"eta, TCD's gamma, must lie in [0, 1]; got {eta}")
    start, end = steps(grid, first)
    # In float32, as the reference multiplies: a product that is nearly an integer is rounded down or not.
    inner = np.floor(np.float32(1.0 - eta) * end.t.astype(np.float32))
    target = at_timesteps(alphas_cumprod(options), inner)
    ratio = end.alpha / target.alpha
    noise = np.sqrt(np.maximum(1.0 - ratio**2, 0.0))
    ratio[-1], noise[-1] = 1.0, 0.0
    if eta == 0:
        ratio, noise = np.ones_like(ratio), np.zeros_like(noise)
    return solver_from_steps(
        start, end, x=[0.0], x0=ratio * target.alpha, eps=ratio * target.sigma, noise=noise, denoises=False
    )


def _cm_grid(options: Options, num_steps: int, run: Options) -> Grid:
    """Karras' sigmas at every (T // N)-th of T; the label is 250 log(sigma)."""
    total = options["num_train_timesteps"]
    if (timesteps := run["timesteps"]) is None:
        if num_steps > total:
            raise ValueError(f"num_steps must be at most the {total} timesteps of the schedule; got {num_steps}")
        timesteps = (np.arange(num_steps) * (total // num_steps))[::-1]
    timesteps = np.asarray(timesteps, np.float64)
    if timesteps.ndim != 1 or np.any(np.diff(timesteps) >= 0) or timesteps[0] >= total or timesteps[-1] < 0:
        raise ValueError(f"timesteps must be a descending list of integers from {total - 1} to 0; got {timesteps}")
    sigmas = karras_sigmas(options["sigma_min"], options["sigma_max"], timesteps[::-1] / (total - 1), options["rho"])
    return Grid(at_ratio(sigmas, 250.0 * np.log(sigmas + 1e-44), space="ve"), clean())


def _cm(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = x0_hat + s_noise sqrt(sigma'^2 - sigma_min^2) z, Song et al. 2023, algorithm 1."""
    start, end = steps(grid, first)
    low, high = options["sigma_min"], options["sigma_max"]
    noise = options["s_noise"] * np.sqrt(np.clip(end.sigma, low, high) ** 2 - low**2)
    return solver_from_steps(start, end, x=[0.0], x0=1.0, eps=0.0, noise=noise)


def _cm_head(options: Options) -> Parameterization:
    low, data = options["sigma_min"], options["sigma_data"]
    return denoised(f"consistency model({low}, {data})", lambda level: consistent(level, low, data), unit_input(data))


def _trig_grid(options: Options, num_steps: int, run: Options) -> Grid:
    """Times from max_timesteps to 0: alpha = cos(t) and sigma = sigma_data sin(t)."""
    if (times := run["timesteps"]) is None:
        middle = run["intermediate_timesteps"] if num_steps == 2 else None
        times = np.linspace(run["max_timesteps"], 0.0, num_steps + 1)
        times = times if middle is None else np.array([run["max_timesteps"], middle, 0.0])
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or times.size < 2 or np.any(np.diff(times) >= 0) or times[-1] < 0:
        raise ValueError(f"timesteps must be a descending list of times, the end included, such as 0; got {times}")
    levels = Level(np.cos(times), options["sigma_data"] * np.sin(times), times)
    return Grid(levels[:-1], levels[-1])


def _trig(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    start, end = steps(grid, first)
    return solver_from_steps(start, end, x=[0.0], x0=end.alpha, eps=0.0, noise=end.sigma)


def _trig_head(options: Options) -> Parameterization:
    data = options["sigma_data"]
    return Parameterization(f"trigflow({data})", lambda level: (-level.sigma / data, data * level.alpha))


_DISTILLED: dict[str, Any] = {
    **TABLE,
    **SPACING,
    **CLIP,
    **THRESHOLD,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "clip_sample": False,
    "set_alpha_to_one": True,  # not used, as timestep_spacing and steps_offset
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "timestep_scaling": 10.0,
    "rescale_betas_zero_snr": False,
}
_LCM = Kind(
    options=_DISTILLED,
    choices={
        "prediction_type": PREDICTIONS,
        "timestep_spacing": NAMES,
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    },
    parameterization=circle,
    grid=_lcm_grid,
    solver=_lcm,
    run={"original_inference_steps": None, "grid_strength": 1.0, "timesteps": None},
    transform=clipping,
)

KINDS = {
    "LCMScheduler": _LCM,
    "TCDScheduler": _LCM._replace(
        grid=_tcd_grid, solver=_tcd, run={**_LCM.run, "eta": 0.3}, transform=lambda options, run: None
    ),
    "CMStochasticIterativeScheduler": Kind(
        options={
            "num_train_timesteps": 40,
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "s_noise": 1.0,
            "rho": 7.0,
            "clip_denoised": True,
        },
        choices={},
        parameterization=_cm_head,
        grid=_cm_grid,
        solver=_cm,
        run={"timesteps": None},
        transform=lambda options, run: clipping(
            {"clip_sample": options["clip_denoised"], "clip_sample_range": 1.0}, run
        ),
        init_scale=lambda options, grid: float(options["sigma_max"]),
    ),
    "SCMScheduler": Kind(
        options={"num_train_timesteps": 1000, "prediction_type": "trigflow", "sigma_data": 0.5},
        choices={"prediction_type": ("trigflow",)},
        parameterization=_trig_head,
        grid=_trig_grid,
        solver=_trig,
        run={"timesteps": None, "max_timesteps": 1.5708, "intermediate_timesteps": 1.3},
        init_scale=lambda options, grid: float(options["sigma_data"]),
    ),
}
