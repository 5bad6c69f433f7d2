"""PNDM with both of its starts, and IPNDM: Adams-Bashforth means of what the network returns.

Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, https://arxiv.org/abs/2202.09778.
The loop is the reference's: its steps end at t - T // N, a v is averaged as it is and read at the state that the step
starts from, and a loop that begins in the middle (image to image) repeats its second evaluation as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusers_fn.levels import Level, append
from diffusers_fn.pretrained.schedulers.heads import circle
from diffusers_fn.pretrained.schedulers.kinds import SPACING, TABLE, Grid, Kind, Options
from diffusers_fn.pretrained.schedulers.spacings import NAMES, timesteps_with_end
from diffusers_fn.pretrained.schedulers.tables import alphas_cumprod, at_timesteps, clean
from diffusers_fn.solvers.adams import ADAMS_BASHFORTH
from diffusers_fn.solvers.base import Solver, linear_solver

__all__ = ["KINDS"]


def _grid(options: Options, num_steps: int, run: Options) -> Grid:
    timesteps, stride = timesteps_with_end(options, num_steps), options["num_train_timesteps"] // num_steps
    if options["skip_prk_steps"]:
        visited = np.concatenate([timesteps[:1], timesteps[1:2], timesteps[1:]])
    elif num_steps < 4:
        raise ValueError(f"PNDM's Runge-Kutta start takes 4 steps: num_steps must be at least 4; got {num_steps}")
    else:  # four evaluations in each of the first three steps: at the start, twice in the middle, at the end
        first, second = timesteps[:3], timesteps[1:4]
        middle = second + stride // 2
        visited = np.concatenate([np.stack([first, middle, middle, second], axis=1).ravel(), timesteps[3:]])
    return Grid(at_timesteps(alphas_cumprod(options), visited), clean())


def _pndm(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """The reference's loop, with its counter, written as rows."""
    table, stride = alphas_cumprod(options), options["num_train_timesteps"] // run["num_steps"]
    before = 1.0 if options["set_alpha_to_one"] else float(table[0])
    visited = grid.levels[first:]
    timesteps = visited.t.astype(int)
    num_start = 0 if options["skip_prk_steps"] else 12
    kept: list[int] = []  # the evaluations whose outputs are averaged
    rows = []
    for i, t in enumerate(timesteps):
        frm, back, weights = t, 0, {i: 1.0}
        if i < num_start:
            to = t - (0 if i % 2 else stride // 2)
            frm, back = grid.levels.t[i // 4 * 4], i % 4
            kept += [i] if back == 0 else []
            if back == 3:
                weights = {i - 3: 1 / 6, i - 2: 1 / 3, i - 1: 1 / 3, i: 1 / 6}
        elif i == 1 and num_start == 0:
            frm, to, back, weights = t + stride, t, 1, {i: 0.5, 0: 0.5}
        else:
            to = t - stride
            kept = [*kept[-3:], i]
            mean = ADAMS_BASHFORTH[len(kept) - 1]
            weights = {j: mean[k] for k, j in enumerate(reversed(kept))}
        ends = at_timesteps(table, np.array([frm, to]), before)
        rows.append(_row(i, back, weights, ends, options["prediction_type"]))
    return _solver(visited, rows, circle(options).line(append(visited, visited[-1]))), False


def _row(i: int, back: int, weights: dict[int, float], ends: Level, prediction: str) -> tuple[Any, Any]:
    """(coefficients of the states, of the outputs) by how far back they are, in a DDIM step with the mean output."""
    scale = ends.alpha[1] / ends.alpha[0]
    slope = ends.sigma[1] - scale * ends.sigma[0]  # of eps
    x, gain = scale, slope
    if prediction == "v_prediction":  # eps = alpha v + sigma x
        x, gain = scale + slope * ends.sigma[0], slope * ends.alpha[0]
    return {back: x}, {i - j: gain * weight for j, weight in weights.items()}


def _solver(visited: Level, rows: Sequence[tuple[Any, Any]], line: tuple[Any, Any]) -> Solver:
    """The table of the rows, whose kept value is the network's output, p x0_hat + q eps_hat."""
    num_states, num_values = (1 + max(max(row[k]) for row in rows) for k in (0, 1))
    x = np.zeros((len(rows), num_states))
    m = np.zeros((len(rows), num_values))
    for i, (states, values) in enumerate(rows):
        x[i, list(states)] = list(states.values())
        m[i, list(values)] = list(values.values())
    p, q = (np.broadcast_to(np.asarray(a, np.float64), len(rows) + 1)[:-1] for a in line)
    return linear_solver(append(visited, visited[-1]), x=list(x.T), x0=p, eps=q, m=list(m.T))


def _improved_grid(options: Options, num_steps: int, run: Options) -> Grid:
    sigma = np.sin(np.linspace(1.0, 0.0, num_steps + 1)[:-1] * np.pi / 2) ** 2
    alpha = np.sqrt(1.0 - sigma**2)
    return Grid(Level(alpha, sigma, np.arctan2(sigma, alpha) / np.pi * 2), clean())


def _improved(options: Options, grid: Grid, first: int, run: Options) -> tuple[Solver, bool]:
    """x' = alpha' (x - sigma e) / alpha + sigma' e with the mean e of the last eps; alpha is at least 1e-8."""
    start = grid.levels[first:]
    end = append(start[1:], grid.end)
    used = np.minimum(np.arange(start.sigma.size), 3)
    scale = end.alpha / np.maximum(start.alpha, 1e-8)
    slope = end.sigma - scale * start.sigma
    if first == 0:  # x = e at alpha = 0, where the reference's (x - e) / 1e-8 is 0
        scale[0], slope[0] = end.sigma[0], 0.0
    m = [ADAMS_BASHFORTH[used, k] * slope for k in range(4)]
    return linear_solver(append(start, start[-1]), x=[scale], x0=0.0, eps=1.0, m=m), False


KINDS = {
    "PNDMScheduler": Kind(
        options={
            **TABLE,
            **SPACING,
            "timestep_spacing": "leading",
            "skip_prk_steps": False,
            "set_alpha_to_one": False,
            "prediction_type": "epsilon",
        },
        choices={
            "prediction_type": ("epsilon", "v_prediction"),
            "timestep_spacing": NAMES,
            "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        },
        parameterization=circle,
        grid=_grid,
        solver=_pndm,
    ),
    "IPNDMScheduler": Kind(
        options={"num_train_timesteps": 1000, "trained_betas": None},
        choices={"trained_betas": (None,)},
        parameterization=lambda options: circle({"prediction_type": "v_prediction"}),
        grid=_improved_grid,
        solver=_improved,
    ),
}
