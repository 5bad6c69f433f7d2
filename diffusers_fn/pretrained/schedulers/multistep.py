"""UniPC, DEIS and SA-Solver: multistep methods on the same grids as DPM-Solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_fn.levels import Level
from diffusers_fn.pretrained.schedulers.circle_grids import CHOICES, OPTIONS, check_grids, circle_grid, unipc_grid
from diffusers_fn.pretrained.schedulers.heads import circle, thresholding
from diffusers_fn.pretrained.schedulers.kinds import Grid, Kind, Options, check_order, plan_levels, quiet_repeat
from diffusers_fn.solvers.adams import deis
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import data_prediction, noise_prediction
from diffusers_fn.solvers.sa_solver import sa_solver
from diffusers_fn.solvers.unipc import unipc

__all__ = ["KINDS"]


def _unipc(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    levels, final_denoise = plan_levels(grid, first)
    index = first + np.arange(levels.t.size - 1)
    solver = unipc(
        levels,
        options["solver_order"],
        data_prediction if options["predict_x0"] else noise_prediction,
        bh1=options["solver_type"] == "bh1",
        corrector=np.where(np.isin(index, options["disable_corrector"]), 0.0, 1.0),
        lower_order_final=options["lower_order_final"],
        euler_at_final=options["lower_order_final"] and not final_denoise,
    )
    return solver, final_denoise


def _check_unipc(options: Options) -> None:
    check_order(options, "solver_order", 4)
    check_grids(options)
    if options["solver_p"] is not None:
        raise ValueError("solver_p, another scheduler as UniPC's predictor, is not available: use that scheduler alone")
    if not options["predict_x0"] and options["prediction_type"] == "flow_prediction":
        raise ValueError("prediction_type 'flow_prediction' needs predict_x0 true")


def _deis(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    levels, final_denoise = plan_levels(grid, first)
    few = bool(options["lower_order_final"]) and grid.levels.t.size < 15
    return deis(levels, options["solver_order"], lower_order_final=few, euler_at_final=few), final_denoise


def _check_deis(options: Options) -> None:
    check_order(options, "solver_order", 3)
    check_grids(options)


def _sa_solver(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    levels, final_denoise = plan_levels(grid, first)
    lower = bool(options["lower_order_final"])
    solver = sa_solver(
        levels,
        _tau(options["tau_func"], levels[:-1]),
        options["predictor_order"],
        options["corrector_order"],
        data_prediction if options["algorithm_type"] == "data_prediction" else noise_prediction,
        lower_order_final=lower,
        euler_at_final=lower,
    )
    return quiet_repeat(solver, grid), final_denoise


def _tau(tau_func: Callable[[float], float] | None, start: Level) -> np.ndarray:
    """tau of steps by a function of the timestep they start at; by default 1 from t = 200 to 800 and 0 elsewhere."""
    tau_func = tau_func or (lambda t: 1.0 if 200 <= t <= 800 else 0.0)
    return np.array([float(tau_func(float(t))) for t in start.t])


def _check_sa(options: Options) -> None:
    check_order(options, "predictor_order", 4)
    check_order(options, "corrector_order", 4)
    check_grids(options)
    if options["tau_func"] is not None and not callable(options["tau_func"]):
        raise ValueError(f"tau_func must be a function of the timestep; got {options['tau_func']!r}")
    if options["algorithm_type"] == "noise_prediction" and options["prediction_type"] == "flow_prediction":
        raise ValueError("prediction_type 'flow_prediction' needs algorithm_type 'data_prediction'")


def _without(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


KINDS = {
    "UniPCMultistepScheduler": Kind(
        options={
            **OPTIONS,
            "predict_x0": True,
            "solver_type": "bh2",
            "disable_corrector": (),
            "solver_p": None,
            "final_sigmas_type": "zero",
            "rescale_betas_zero_snr": False,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
        choices={
            **CHOICES,
            "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),
            "time_shift_type": ("exponential", "linear"),
        },
        parameterization=lambda options: circle(
            {**options, "algorithm_type": "data_prediction" if options["predict_x0"] else "noise_prediction"}
        ),
        grid=unipc_grid,
        solver=_unipc,
        run={"mu": None, "sigmas": None},
        transform=lambda options, run: thresholding(options, run) if options["predict_x0"] else None,
        check=_check_unipc,
    ),
    "DEISMultistepScheduler": Kind(
        options={**OPTIONS, "algorithm_type": "deis", "solver_type": "logrho"},
        choices={
            **CHOICES,
            "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
            "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
        },
        parameterization=lambda options: circle({**options, "algorithm_type": "deis"}),
        grid=circle_grid,
        solver=_deis,
        run={"mu": None},
        transform=thresholding,
        check=_check_deis,
    ),
    "SASolverScheduler": Kind(
        options={
            **_without(OPTIONS, "solver_order", "use_dynamic_shifting", "time_shift_type"),
            "predictor_order": 2,
            "corrector_order": 2,
            "tau_func": None,
            "algorithm_type": "data_prediction",
            "lambda_min_clipped": -np.inf,
            "variance_type": None,
        },
        choices={
            **CHOICES,
            "algorithm_type": ("data_prediction", "noise_prediction"),
            "variance_type": (None, "learned", "learned_range"),
        },
        parameterization=circle,
        grid=circle_grid,
        solver=_sa_solver,
        transform=thresholding,
        check=_check_sa,
    ),
}
