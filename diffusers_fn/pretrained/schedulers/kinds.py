"""What a scheduler class is here: its options, its grid of levels, and the table of its steps.

A family of classes is one file with a dictionary {class name: Kind}. A grid is the levels that a loop evaluates and the
level that it ends at; a solver is the table of the steps between them, which `solver_from_steps` writes.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.denoisers import Transform
from diffusers_fn.levels import Level, append
from diffusers_fn.parameterizations import Parameterization
from diffusers_fn.solvers.base import Solver, linear_solver

__all__ = [
    "CLIP",
    "DYNAMIC",
    "FLOW",
    "GRIDS",
    "SPACING",
    "TABLE",
    "THRESHOLD",
    "Grid",
    "Kind",
    "Options",
    "check_order",
    "plan_levels",
    "quiet_repeat",
    "solver_from_steps",
    "steps",
]

Options = Mapping[str, Any]

# Options of several classes, with their defaults.
TABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "trained_betas": None,
}
SPACING = {"timestep_spacing": "linspace", "steps_offset": 0}
THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
GRIDS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}


class Grid(NamedTuple):
    """The levels of a whole loop, before anything is cut from it.

    Attributes:
      levels: Level[N], those at which steps start; t is the label that the network gets.
      end: Level[], where the last step ends; sigma = 0 for clean data.
      ends: Level[N], where each step ends, if that is not the next level.
      num_sigmas: the number of intervals that the reference counts, for the churn of a step.
      repeats: whether the last level and `end` are one level, which is written a hair below, as steps have a length.
    """

    levels: Level
    end: Level
    ends: Level | None = None
    num_sigmas: int = 0
    repeats: bool = False


class Kind(NamedTuple):
    """A scheduler class.

    Attributes:
      options: {option of scheduler_config.json: the reference's default}.
      choices: {option: its values}; other values are refused by name.
      parameterization: options -> Parameterization.
      grid: (options, num_steps, run) -> Grid.
      solver: (options, grid, first, run) -> (solver, final_denoise), for the steps from index `first` on.
      run: {argument of `plan`: its default}, beside the options.
      transform: (options, run) -> the transform of the denoiser, or None.
      init_scale: (options, grid) -> the standard deviation of the first state of pure noise.
      order: the number of evaluations per step that the image-to-image pipelines count with.
      check: options -> raises ValueError for combinations without a meaning.
    """

    options: Options
    choices: Mapping[str, Sequence[Any]]
    parameterization: Callable[[Options], Parameterization]
    grid: Callable[[Options, int, Options], Grid]
    solver: Callable[[Options, Grid, int, Options], tuple[Solver, bool]]
    run: Options = types.MappingProxyType({})
    transform: Callable[[Options, Options], Transform | None] = lambda options, run: None
    init_scale: Callable[[Options, Grid], float] = lambda options, grid: 1.0
    order: int = 1
    check: Callable[[Options], None] = lambda options: None


def steps(grid: Grid, first: int) -> tuple[Level, Level]:
    """Returns (start, end), Level[N - first] each: both ends of each step from index `first` on."""
    start = grid.levels[first:]
    if grid.ends is not None:
        return start, grid.ends[first:]
    return start, append(start[1:], grid.end)


def plan_levels(grid: Grid, first: int) -> tuple[Level, bool]:
    """Returns (levels, final_denoise) for a solver of this library: with the last level unless it is clean data."""
    levels = grid.levels[first:]
    return (levels, True) if grid.end.sigma == 0 else (append(levels, grid.end), False)


def solver_from_steps(
    start: Level,
    end: Level,
    *,
    x: Sequence[Any],
    x0: ArrayLike,
    eps: ArrayLike,
    m: Sequence[Any] = (1.0,),
    noise: Array | None = None,
    denoises: bool | None = None,
) -> tuple[Solver, bool]:
    """Returns (solver, final_denoise) of the columns for N steps, in the meaning of `linear_solver`.

    Args:
      start: Level[N], at which the network is evaluated.
      end: Level[N], where the steps end.
      x, x0, eps, m, noise: columns, numbers or [N]; noise None or zeros for none.
      denoises: whether the last step returns x0_hat; None: if it ends at clean data.
    """
    num = start.sigma.shape[0]
    full = lambda a: np.broadcast_to(np.asarray(a, np.float64), (num,))  # noqa: E731
    noise = None if noise is None or not np.any(noise) else full(noise)
    if denoises is None:
        denoises = bool(end.sigma[-1] == 0)
    if denoises:  # the final denoise takes the place of the last step
        cut = lambda a: full(a)[:-1]  # noqa: E731
        levels = start
        noise = None if noise is None or not np.any(noise[:-1]) else noise[:-1]
    else:
        cut = full
        levels = append(start, end[-1] if end.sigma[-1] > 0 else start[-1])  # the last row is not run
    table = linear_solver(
        levels,
        x=[cut(a) for a in x],
        x0=cut(x0),
        eps=cut(eps),
        m=[cut(a) for a in m],
        noise=noise,
    )
    return table, denoises


def quiet_repeat(solver: Solver, grid: Grid) -> Solver:
    """Returns the solver without noise in the last step if that has no length, but for a hair (`Grid.repeats`)."""
    rows = solver.rows
    if not grid.repeats or rows.noise is None:
        return solver
    noise = np.array(rows.noise)
    noise[-2] = 0.0  # the last row is the final denoise, which is not run
    return dataclasses.replace(solver, rows=dataclasses.replace(rows, noise=noise))


def check_order(options: Options, name: str, highest: int) -> None:
    """Raises ValueError unless an option is an integer in 1 ... highest."""
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        raise ValueError(f"{name} must be an integer from 1 to {highest}; got {value!r}")
