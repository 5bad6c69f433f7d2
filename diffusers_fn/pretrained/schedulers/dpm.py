"""DPM-Solver(++) schedulers: multistep, in single steps, and towards noise (inverse).

Lu et al. 2022, https://arxiv.org/abs/2206.00927 and https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn.grids.times import beta_quantile
from diffusers_fn.levels import Level, append
from diffusers_fn.pretrained.schedulers.circle_grids import (
    CHOICES,
    OPTIONS,
    check_grids,
    circle_grid,
    clipped_length,
)
from diffusers_fn.pretrained.schedulers.heads import circle, thresholding
from diffusers_fn.pretrained.schedulers.kinds import Grid, Kind, Options, check_order, plan_levels, quiet_repeat, steps
from diffusers_fn.pretrained.schedulers.spacings import (
    exponential_sigmas,
    flow_shifted,
    karras_sigmas,
    timesteps_without_end,
)
from diffusers_fn.pretrained.schedulers.tables import alphas_cumprod, at_ratio, ratios, time_of
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import ExponentialForm, data_prediction, exponential_step, noise_prediction
from diffusers_fn.solvers.multistep import difference_weights
from diffusers_fn.solvers.multistep_tables import multistep_solver, step_orders
from diffusers_fn.solvers.plans import check_alpha, check_plan
from diffusers_fn.solvers.singlestep import singlestep

__all__ = ["KINDS", "SOLVER_TYPES", "check_solver", "multistep"]


def _form(options: Options) -> ExponentialForm:
    return noise_prediction if options["algorithm_type"] in ("dpmsolver", "sde-dpmsolver") else data_prediction


def _eta(options: Options) -> float:
    """1.0 for the reverse SDE, the Python 0 for the flow."""
    return 1.0 if options["algorithm_type"].startswith("sde") else 0


def _grid(options: Options, num_steps: int, run: Options) -> Grid:
    return circle_grid(options, num_steps, run, whole=options["beta_schedule"] != "squaredcos_cap_v2")


def multistep(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """The multistep solver; its order falls at the end of loops of fewer than 15 steps, and before clean data."""
    levels, final_denoise = plan_levels(grid, first)
    check_plan(levels)
    form = _form(options)
    if form is noise_prediction:
        check_alpha(levels)
    few = bool(options["lower_order_final"]) and grid.levels.t.size < 15
    ends_low = not final_denoise and (few or bool(options["euler_at_final"]))
    used = step_orders(levels.t.size - 1, options["solver_order"], few, ends_low)
    return quiet_repeat(_solver(levels[:-1], levels[1:], levels, used, form, options), grid), final_denoise


def _solver(
    start: Level, end: Level, levels: Level, used: np.ndarray, form: ExponentialForm, options: Options
) -> Solver:
    step = exponential_step(start, end, form, _eta(options))
    order = options["solver_order"]
    if options["algorithm_type"] == "sde-dpmsolver++" and "sigma_data" not in options:
        # The reference has the opposite sign of the 1/2 in its third order; that of EDM networks has no third order.
        step = step._replace(w2=step.w2 - step.rate)
    m = difference_weights(step, used, order, options["solver_type"] == "heun")
    return multistep_solver(levels, form, m, step)


def _inverse_grid(options: Options, num_steps: int, run: Options) -> Grid:
    """Rising levels; timesteps that coincide are taken once, while the sigmas go on one by one."""
    table = ratios(alphas_cumprod(options))
    noisiest = clipped_length(options, table)
    space = "flow" if options["use_flow_sigmas"] else "vp"
    respacing = [name for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if options[name]]
    if options["use_flow_sigmas"]:  # these fall, in the reference too
        sigmas = (1.0 - np.linspace(1.0, 1.0 / table.size, num_steps + 1))[::-1]
        sigmas = flow_shifted(sigmas, options["flow_shift"])[:-1]
        labels, last = np.trunc(sigmas * table.size), sigmas[-1] * (1.0 - 1e-10)
    elif respacing:
        sigmas = _rising(options, float(table[0]), float(table[-1]), num_steps)
        labels = time_of(sigmas, table)
        labels = np.trunc(labels.round() if options["use_karras_sigmas"] else labels)
        last = sigmas[-1] * (1.0 + 1e-10)
    else:
        labels = _rising_timesteps(options, num_steps, noisiest)
        sigmas, last = np.interp(labels, np.arange(table.size), table), table[noisiest - 1]
    _, unique = np.unique(labels, return_index=True)
    labels, sigmas = labels[np.sort(unique)], np.append(sigmas, last)
    num = labels.size
    end = at_ratio(sigmas[num], np.float64(labels[-1]), space=space)
    return Grid(at_ratio(sigmas[:num], labels, space=space), end)


def _rising_timesteps(options: Options, num_steps: int, noisiest: int) -> np.ndarray:
    if options["timestep_spacing"] == "linspace":
        return np.linspace(0, noisiest - 1, num_steps + 1).round()[:-1]
    if options["timestep_spacing"] == "leading":
        return np.arange(num_steps) * (noisiest // (num_steps + 1)) + float(options["steps_offset"])
    return timesteps_without_end(options, num_steps, noisiest)[::-1]


def _rising(options: Options, low: float, high: float, num_steps: int) -> np.ndarray:
    """Sigmas from low to high: the falling formulas with their ends exchanged."""
    if options["use_karras_sigmas"]:
        return karras_sigmas(high, low, num_steps)
    if options["use_exponential_sigmas"]:
        return exponential_sigmas(high, low, num_steps)
    return high + (low - high) * beta_quantile(1.0 - np.linspace(0.0, 1.0, num_steps), 0.6, 0.6)


def _inverse(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    start, end = steps(grid, first)
    few = bool(options["lower_order_final"]) and grid.levels.t.size < 15
    used = step_orders(start.t.size, options["solver_order"], few, few or bool(options["euler_at_final"]))
    return _solver(start, end, append(start, end[-1]), used, _form(options), options), False


def _singlestep(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """Steps of the orders 1, 2, 3 in turn over the levels: groups of evaluations that start from one state."""
    levels, final_denoise = plan_levels(grid, first)
    orders = _evaluation_orders(options, grid.levels.t.size)[first:]
    groups: list[int] = []
    for i, order in enumerate(orders):
        order = min(order, i + 1)  # a loop that begins in the middle has no earlier outputs
        if order == 1:
            groups.append(1)
        else:
            groups[-1] = order
    if final_denoise:
        groups = groups[:-1]
    if options["algorithm_type"] == "sde-dpmsolver++" and options["solver_type"] == "heun" and 3 in groups:
        raise ValueError(
            "the third order of sde-dpmsolver++ with solver_type 'heun' is not available in single steps: its last "
            "term has a wrong sign in the reference. Use solver_type midpoint, or solver_order 2"
        )
    solver = singlestep(
        levels, groups, _form(options), eta=_eta(options), taylor=options["solver_type"] == "heun", nested=True
    )
    return quiet_repeat(solver, grid) if groups[-1:] == [1] else solver, final_denoise


def _evaluation_orders(options: Options, num_steps: int) -> list[int]:
    """The order that each evaluation completes, for the whole loop."""
    order = options["solver_order"]
    zero = options["final_sigmas_type"] == "zero"
    lower = bool(options["lower_order_final"]) or num_steps % order != 0 or zero
    turn = list(range(1, order + 1))
    whole, rest = divmod(num_steps, order)
    if not lower:
        return turn * whole
    if rest:
        orders = turn * whole + turn[:rest]
    elif order == 1:
        orders = turn * whole
    else:  # the last group is split
        orders = turn * (whole - 1) + turn[:-1] + [1]
    return [*orders[:-1], 1] if zero else orders


def check_solver(options: Options, highest: int = 3) -> None:
    check_order(options, "solver_order", highest)
    if "use_flow_sigmas" in options:
        check_grids(options)
    if _form(options) is noise_prediction:
        if options.get("final_sigmas_type") == "zero":
            raise ValueError("algorithm_type dpmsolver and sde-dpmsolver need final_sigmas_type 'sigma_min'")
        if options["prediction_type"] == "flow_prediction":
            raise ValueError("prediction_type 'flow_prediction' needs algorithm_type dpmsolver++ or sde-dpmsolver++")


def _check_inverse(options: Options) -> None:
    check_solver(options)
    if _eta(options):
        raise ValueError(
            f"algorithm_type {options['algorithm_type']!r} is not available in DPMSolverMultistepInverseScheduler: its "
            "noise is imaginary towards noisier levels. Use dpmsolver++ or dpmsolver"
        )


_SOLVER = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
_ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis")
SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")
_END = {"final_sigmas_type": "zero", "lambda_min_clipped": -np.inf, "variance_type": None}
_DPM_CHOICES = {
    **CHOICES,
    "algorithm_type": _ALGORITHMS,
    "solver_type": SOLVER_TYPES,
    # the network's variance channels are left out
    "variance_type": (None, "learned", "learned_range"),
}
_MULTISTEP = Kind(
    options={
        **OPTIONS,
        **_SOLVER,
        **_END,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "rescale_betas_zero_snr": False,
    },
    choices=_DPM_CHOICES,
    parameterization=circle,
    grid=_grid,
    solver=multistep,
    run={"timesteps": None, "mu": None},
    transform=thresholding,
    check=check_solver,
)


def _without(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


KINDS = {
    "DPMSolverMultistepScheduler": _MULTISTEP,
    "DPMSolverMultistepInverseScheduler": _MULTISTEP._replace(
        options=_without(
            _MULTISTEP.options,
            "final_sigmas_type",
            "use_lu_lambdas",
            "rescale_betas_zero_snr",
            "use_dynamic_shifting",
            "time_shift_type",
        ),
        grid=_inverse_grid,
        solver=_inverse,
        run={},
        check=_check_inverse,
    ),
    "DPMSolverSinglestepScheduler": _MULTISTEP._replace(
        options={
            **_without(_MULTISTEP.options, "timestep_spacing", "steps_offset", "euler_at_final", "use_lu_lambdas",
                       "rescale_betas_zero_snr"),
            "lower_order_final": False,
        },
        choices={**_DPM_CHOICES, "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "deis")},
        grid=circle_grid,
        solver=_singlestep,
    ),
}  # fmt: skip
