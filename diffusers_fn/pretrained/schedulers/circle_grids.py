"""The grids of DPM-Solver, UniPC, DEIS and SA-Solver: timesteps, respaced sigmas or flow sigmas, and where they end."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn.pretrained.schedulers.kinds import (
    DYNAMIC,
    FLOW,
    GRIDS,
    SPACING,
    TABLE,
    THRESHOLD,
    Grid,
    Options,
)
from diffusers_fn.pretrained.schedulers.spacings import (
    flow_shifted,
    given_timesteps,
    respaced,
    stretched,
    time_shifted,
    timesteps_without_end,
)
from diffusers_fn.pretrained.schedulers.tables import alphas_cumprod, at_ratio, clean, ratios, time_of

__all__ = ["CHOICES", "OPTIONS", "check_grids", "circle_grid", "clipped_length", "unipc_grid"]

OPTIONS: dict[str, Any] = {
    **TABLE,
    **SPACING,
    **THRESHOLD,
    **GRIDS,
    **FLOW,
    **DYNAMIC,
    "solver_order": 2,
    "prediction_type": "epsilon",
    "lower_order_final": True,
}
CHOICES = {
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential",),
}


def circle_grid(options: Options, num_steps: int, run: Options, *, whole: bool = True) -> Grid:
    """Returns the grid; its labels are cut to integers as the reference's are.

    It ends at final_sigmas_type; in classes without that option at the first timestep's sigma, or where sigmas are
    respaced at their last one, once more.

    Args: as `Kind.grid`; whole: whether use_karras_sigmas and use_lu_lambdas round the labels before.
    """
    table = ratios(alphas_cumprod(options, almost_zero=True))
    at_last = "final_sigmas_type" not in options
    if options["use_flow_sigmas"]:
        sigmas = (1.0 - np.linspace(1.0, 1.0 / table.size, num_steps + 1))[::-1]
        sigmas = flow_shifted(sigmas, _shift(options, run))[:-1]
        return _grid(sigmas, sigmas * table.size, table, options, at_last)
    timesteps = given_timesteps(run, options, num_steps)
    if timesteps is None:
        timesteps = timesteps_without_end(options, num_steps, clipped_length(options, table))
    sigmas = np.interp(timesteps, np.arange(table.size), table)
    if (other := respaced(options, table[::-1], num_steps)) is None:
        return _grid(sigmas, timesteps, table, options, False)
    labels = time_of(other, table)
    if whole and (options["use_karras_sigmas"] or options.get("use_lu_lambdas")):
        labels = labels.round()
    return _grid(other, labels, table, options, at_last)


def unipc_grid(options: Options, num_steps: int, run: Options) -> Grid:
    """Returns UniPC's grid, whose flow sigmas are others: from 1 - 1e-6, with dynamic and terminal shifts."""
    if options["use_dynamic_shifting"] and run["mu"] is None:
        raise ValueError("use_dynamic_shifting needs mu: pass plan(num_steps, mu=...)")
    table = ratios(alphas_cumprod(options, almost_zero=True))
    if run["sigmas"] is not None and (not options["use_flow_sigmas"] or options["use_karras_sigmas"]):
        raise ValueError("UniPCMultistepScheduler takes sigmas with use_flow_sigmas alone")
    repeats = options["final_sigmas_type"] == "sigma_min"
    if not options["use_flow_sigmas"]:
        grid = circle_grid({**options, "final_sigmas_type": "zero"}, num_steps, run)
        if not repeats:
            return grid
        respacing = any(options[name] for name in GRIDS)
        return _with_end(grid, float(grid.levels.sigma[-1] / grid.levels.alpha[-1]) if respacing else table[0], "vp")
    if options["use_karras_sigmas"]:
        other = respaced(options, table[::-1], num_steps)
        assert other is not None
        sigmas = other / (other + 1.0)
    else:
        given = run["sigmas"]
        sigmas = np.linspace(1.0, 1.0 / table.size, num_steps + 1)[:-1] if given is None else np.asarray(given, float)
        if options["use_dynamic_shifting"]:
            sigmas = time_shifted(sigmas, run["mu"], options["time_shift_type"])
        else:
            sigmas = flow_shifted(sigmas, options["flow_shift"])
        if options["shift_terminal"]:
            sigmas = stretched(sigmas, options["shift_terminal"])
        if abs(sigmas[0] - 1.0) < 1e-6:  # alpha = 0
            sigmas[0] -= 1e-6
    return _grid(sigmas, sigmas * table.size, table, options, repeats)


def clipped_length(options: Options, table: np.ndarray) -> int:
    """Returns the number of timesteps whose log(alpha / sigma) is at least lambda_min_clipped."""
    lowest = options.get("lambda_min_clipped", -np.inf)
    return int(table.size - np.searchsorted(-np.log(table[::-1]), lowest))


def check_grids(options: Options) -> None:
    """Raises ValueError for combinations that have no sigmas in the reference, or NaN."""
    if not options["use_flow_sigmas"]:
        if options.get("shift_terminal") is not None:
            raise ValueError("shift_terminal needs use_flow_sigmas")
        return
    allowed = ("use_karras_sigmas",) if "shift_terminal" in options else ()
    for name in (*GRIDS, "use_lu_lambdas"):
        if options.get(name) and name not in allowed:
            raise ValueError(
                f"use_flow_sigmas and {name} exclude each other: sigma would be above 1 and alpha negative"
            )


def _shift(options: Options, run: Options) -> float:
    """flow_shift, or e^mu where mu is given."""
    if (mu := run.get("mu")) is None:
        return float(options["flow_shift"])
    if not options["use_dynamic_shifting"]:
        raise ValueError("mu needs use_dynamic_shifting")
    return float(np.exp(mu))


def _grid(sigmas: np.ndarray, labels: np.ndarray, table: np.ndarray, options: Options, repeats: bool) -> Grid:
    space = "flow" if options["use_flow_sigmas"] else "vp"
    grid = Grid(at_ratio(sigmas, np.trunc(labels), space=space), clean(), num_sigmas=sigmas.size)
    if options.get("final_sigmas_type") == "zero":
        return grid
    return _with_end(grid, sigmas[-1] if repeats else table[0], space)


def _with_end(grid: Grid, ratio: float, space: str) -> Grid:
    """The grid that ends at a sigma; where that is the last one again, a hair below, as steps have a length."""
    last = float(grid.levels.sigma[-1] if space == "flow" else grid.levels.sigma[-1] / grid.levels.alpha[-1])
    repeats = bool(np.isclose(ratio, last, rtol=1e-9, atol=0.0))
    ratio = last * (1.0 - 1e-10) if repeats else ratio
    return grid._replace(end=at_ratio(np.float64(ratio), np.float64(0.0), space=space), repeats=repeats)
