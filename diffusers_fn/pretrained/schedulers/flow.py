"""Flow-matching schedulers: Euler, Heun, consistency models on a flow, LTX's ancestral Euler.

x = (1 - sigma) x0 + sigma eps and the network returns eps - x0; Esser et al. 2024, https://arxiv.org/abs/2403.03206.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import check_number
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import velocity
from diffusers_fn.pretrained.schedulers.kinds import GRIDS, Grid, Kind, Options, solver_from_steps, steps
from diffusers_fn.pretrained.schedulers.sigma_space import CHURN, churned
from diffusers_fn.pretrained.schedulers.spacings import flow_shifted, respaced, stretched, time_shifted
from diffusers_fn.pretrained.schedulers.tables import at_ratio, clean
from diffusers_fn.solvers.base import Solver

__all__ = ["KINDS"]


def _grid(options: Options, num_steps: int, run: Options) -> Grid:
    """Sigmas between the ends of the shifted table, and shifted there once more; with e^mu for a dynamic shift."""
    total, shift, dynamic = options["num_train_timesteps"], options["shift"], options["use_dynamic_shifting"]
    given, timesteps = run["sigmas"], run["timesteps"]
    if given is not None:
        sigmas = np.asarray(given, np.float64)
    elif timesteps is not None:
        sigmas = np.asarray(timesteps, np.float64) / total
    else:
        low, high = (sigma if dynamic else flow_shifted(sigma, shift) for sigma in (1.0 / total, 1.0))
        sigmas = np.linspace(high * total, low * total, num_steps) / total
    if sigmas.ndim != 1 or np.any(np.diff(sigmas) >= 0) or sigmas[0] > 1 or sigmas[-1] <= 0:
        raise ValueError(f"sigmas must be a descending list of numbers in (0, 1], without the final 0; got {sigmas}")
    if timesteps is not None and len(timesteps) != sigmas.size:
        raise ValueError(f"timesteps and sigmas must be equally many; got {len(timesteps)} and {sigmas.size}")
    sigmas = (
        time_shifted(sigmas, _mu(options, run), options["time_shift_type"]) if dynamic else flow_shifted(sigmas, shift)
    )
    if options["shift_terminal"]:
        sigmas = stretched(sigmas, options["shift_terminal"])
    if (other := respaced(options, sigmas, sigmas.size)) is not None:
        sigmas = other
    if options["invert_sigmas"]:  # they rise, from (near) 0 to 1
        sigmas = 1.0 - sigmas
        end = Level(np.float64(0.0), np.float64(1.0), np.float64(total))
        return Grid(at_ratio(sigmas, sigmas * total, space="flow"), end)
    labels = sigmas * total if timesteps is None else np.asarray(timesteps, np.float64)
    return Grid(at_ratio(sigmas, labels, space="flow"), clean())


def _mu(options: Options, run: Options) -> float:
    """mu, given or by the length of the image's sequence: linear in it, as the pipelines compute it."""
    if run["mu"] is not None:
        return float(run["mu"])
    if (length := run["image_seq_len"]) is None:
        raise ValueError(
            "use_dynamic_shifting needs the size of the image: pass plan(num_steps, image_seq_len=...), the number of "
            "its tokens, or mu"
        )
    low, high = options["base_image_seq_len"], options["max_image_seq_len"]
    slope = (options["max_shift"] - options["base_shift"]) / (high - low)
    return float(options["base_shift"] + slope * (length - low))


def _euler(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = x + (sigma' - sigma) v_hat, or with stochastic_sampling (1 - sigma') x0_hat + sigma' z."""
    start, end = steps(grid, first)
    if options["stochastic_sampling"]:
        return _renoised(options, grid, first, run)
    slope = end.sigma - start.sigma
    return solver_from_steps(start, end, x=[1.0], x0=-slope, eps=slope)


def _renoised(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    start, end = steps(grid, first)
    return solver_from_steps(start, end, x=[0.0], x0=1.0 - end.sigma, eps=0.0, noise=end.sigma)


def _heun_grid(options: Options, num_steps: int, run: Options) -> Grid:
    nothing = dict.fromkeys(("sigmas", "timesteps", "mu"))
    grid = _grid({**_EULER, "shift": options["shift"], "num_train_timesteps": options["num_train_timesteps"]},
                 num_steps, nothing)  # fmt: skip
    return grid._replace(num_sigmas=2 * num_steps - 1)


def _heun(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """Heun's method; with churn the noise comes after the step's first evaluation, whose slope is at the state before.

        d = v_hat sigma / sigma^,   x~ = x + n z + (sigma' - sigma^) d,   x' = x~ + (sigma' - sigma^) (v~ - d) / 2

    The last step, to sigma = 0, is the first of these alone.
    """
    start, end = steps(grid, first)
    raised, noise = churned(start.sigma, grid, run)
    gain, slope = (end.sigma - raised) * start.sigma / raised, (end.sigma - raised)[:-1]
    # Rows: two for each step but the last one. m is (gain) v_hat, then slope v~.
    rows = lambda a, b: np.append(np.stack([a[:-1], b], axis=1).ravel(), a[-1])  # noqa: E731
    one = np.ones_like(start.sigma)
    visited = Level(*(rows(getattr(start, f), getattr(end, f)[:-1]) for f in ("alpha", "sigma", "t")))
    weight = rows(gain, slope)
    return solver_from_steps(
        visited,
        Level(*(rows(getattr(end, f), getattr(end, f)[:-1]) for f in ("alpha", "sigma", "t"))),
        x=[1.0],
        x0=-weight,
        eps=weight,
        m=[rows(one, 0.5 * one[:-1]), rows(0.0 * one, -0.5 * one[:-1])],
        noise=rows(noise, np.zeros_like(slope)),
        denoises=not np.any(noise),
    )


_EULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    **GRIDS,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}
_RUN = {"sigmas": None, "timesteps": None, "mu": None, "image_seq_len": None}


def _ancestral_grid(options: Options, num_steps: int, run: Options) -> Grid:
    """LTX: FlowMatchEulerDiscreteScheduler's grid with its defaults, or given sigmas, the last one included."""
    if (given := run["sigmas"]) is None:
        return _grid({**_EULER, "num_train_timesteps": options["num_train_timesteps"]}, num_steps,
                     dict.fromkeys(("sigmas", "timesteps", "mu")))  # fmt: skip
    sigmas = np.asarray(given, np.float64)
    if sigmas.ndim != 1 or sigmas.size < 2 or np.any(np.diff(sigmas) >= 0) or sigmas[-1] != 0:
        raise ValueError(f"sigmas must be a descending list that ends at 0; got {sigmas}")
    return Grid(at_ratio(sigmas[:-1], sigmas[:-1] * options["num_train_timesteps"], space="flow"), clean())


def _ancestral(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = c (r x + (1 - r) x0_hat) + s_noise sqrt(sigma'^2 - (c sigma_down)^2) z.

    With sigma_down = sigma' (1 + (sigma' / sigma - 1) eta), r = sigma_down / sigma and c = alpha' / (1 - sigma_down).
    """
    for name in ("eta", "s_noise"):
        check_number(name, options[name])
    start, end = steps(grid, first)
    down = end.sigma * (1.0 + (end.sigma / start.sigma - 1.0) * options["eta"])
    ratio = down / start.sigma
    scale, noise = np.ones_like(down), np.zeros_like(down)
    if options["eta"] > 0 and options["s_noise"] > 0:
        scale = end.alpha / (1.0 - down)
        noise = options["s_noise"] * np.sqrt(np.maximum(end.sigma**2 - (down * scale) ** 2, 0.0))
    return solver_from_steps(start, end, x=[scale * ratio], x0=scale * (1.0 - ratio), eps=0.0, noise=noise)


def _check_upscaling(options: Options) -> None:
    if options["scale_factors"]:
        raise ValueError(
            "scale_factors, which enlarge x between steps, are not available: the shape of x is fixed here"
        )


_FLOW = Kind(
    options=_EULER,
    choices={"time_shift_type": ("exponential", "linear")},
    parameterization=lambda options: velocity,
    grid=_grid,
    solver=_euler,
    run=_RUN,
)

KINDS = {
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW._replace(
        options={"num_train_timesteps": 1000, "shift": 1.0},
        choices={},
        grid=_heun_grid,
        solver=_heun,
        run=CHURN,
        order=2,
    ),
    "FlowMatchLCMScheduler": _FLOW._replace(
        options={
            **{name: value for name, value in _EULER.items() if name != "stochastic_sampling"},
            "scale_factors": None,
            "upscale_mode": "bicubic",
        },
        solver=_renoised,
        check=_check_upscaling,
    ),
    "LTXEulerAncestralRFScheduler": _FLOW._replace(
        options={"num_train_timesteps": 1000, "eta": 1.0, "s_noise": 1.0},
        choices={},
        grid=_ancestral_grid,
        solver=_ancestral,
        run={"sigmas": None},
    ),
}
