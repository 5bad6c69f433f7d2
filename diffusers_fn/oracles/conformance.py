"""Checks of a solver: its order of convergence, the moments of its samples, and its program."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.oracles.denoisers import gaussian, mixture
from diffusers_fn.oracles.flows import gaussian_flow, mixture_flow
from diffusers_fn.processes import Process, at_log_snr, edm, flow, vp
from diffusers_fn.sampling import sample
from diffusers_fn.solvers import start_level
from diffusers_fn.solvers.base import LinearRow, Solver

__all__ = ["MakeSolver", "check_solver", "graded_levels", "marginal_moments", "measure_order"]

MakeSolver = Callable[[Level], Solver]
_PROCESSES: Mapping[str, Process] = {"vp": vp(), "flow": flow(), "edm": edm()}
MEAN, STD = 0.3, 0.5
WEIGHTS, MEANS, STDS = (0.35, 0.65), (-0.8, 0.6), (0.4, 0.5)
# Standard scores of the starting points of the flow.
_STARTS = np.array([[1.3], [-0.7], [0.2], [2.1]])


def graded_levels(process: Process, num_levels: int, log_ratios: tuple[float, float] = (4.0, -3.0)) -> Level:
    """Returns levels of a process between two values of log(sigma / alpha), in steps that grow linearly.

    On such a plan the first steps of a multistep method, which are of lower order, do not determine its order.

    >>> graded_levels(edm(), 3, (1.0, -1.0)).sigma.round(4)
    array([2.7183, 1.6487, 0.3679])
    """
    first, last = log_ratios
    return at_log_snr(process, -2.0 * (first + (last - first) * np.linspace(0.0, 1.0, num_levels) ** 2))


def measure_order(
    make: MakeSolver,
    process: Process,
    data: str = "gaussian",
    *,
    sizes: Sequence[int] = (200, 400),
    log_ratios: tuple[float, float] = (4.0, -3.0),
) -> float:
    """Returns the measured order of convergence: minus the slope of log error against log N.

    The error is the distance in float64 to the exact probability flow, at the last level.

    Args:
      make: levels -> a deterministic solver.
      process: the process of the levels.
      data: "gaussian" or "mixture".
      sizes: two or more numbers of levels; the slope is between the last two.
      log_ratios: the first and last log(sigma / alpha).

    Raises:
      ValueError: if data is another string, there are fewer than two sizes, or the solver draws noise.

    >>> from diffusers_fn.solvers import heun
    >>> round(measure_order(heun, flow(), sizes=(50, 100)))
    2
    """
    if data not in ("gaussian", "mixture"):
        raise ValueError(f"data must be 'gaussian' or 'mixture'; got {data!r}")
    if len(sizes) < 2:
        raise ValueError(f"measuring an order needs at least two sizes; got {tuple(sizes)}")
    first, last = graded_levels(process, 2, log_ratios)
    start = _STARTS * np.hypot(first.alpha, first.sigma)
    exact = gaussian_flow(MEAN, STD, start, first, last)
    if data == "mixture":
        exact = mixture_flow(WEIGHTS, MEANS, STDS, start, first, last)
    errors = []
    for num_levels in sizes:
        solver = make(graded_levels(process, num_levels, log_ratios))
        if solver.stochastic:
            raise ValueError("the order is measured for deterministic solvers only: use eta = 0, or marginal_moments")
        with _double_precision():
            x = jax.jit(_states, static_argnums=0)(data, solver, jnp.asarray(start))
        errors.append(np.sqrt(np.mean((np.asarray(x) - exact) ** 2)))
    return float(-np.log(errors[-1] / errors[-2]) / np.log(sizes[-1] / sizes[-2]))


def marginal_moments(
    solver: Solver, mean: float = MEAN, std: float = STD, *, start: tuple[Any, Any] | None = None
) -> tuple[Any, Any]:
    """Returns the exact (mean, standard deviation) of a solver's samples for N(mean, std^2) data.

    The exact denoiser of a Gaussian is affine, so all states are Gaussian, and each row of the table maps their mean
    and covariance. The recursion runs on the host in float64, without sampling.

    Args:
      solver: a table (see `solvers.linear_solver`) on levels [N], without a learned variance.
      mean: a number, of the data.
      std: a number, of the data.
      start: (mean, standard deviation) of the state at the first level; None for the exact marginal there.

    Raises:
      ValueError: if the solver is not a table, or its variance is learned.

    >>> from diffusers_fn.solvers import ancestral
    >>> plan = graded_levels(vp(), 200)
    >>> [round(float(moment), 2) for moment in marginal_moments(ancestral(plan), 0.3, 0.5)]
    [0.3, 0.48]
    """
    rows = solver.rows
    if not isinstance(rows, LinearRow) or rows.noise_range is not None:
        raise ValueError(
            "the recursion is for tables, solvers whose rows are of type LinearRow, without a learned variance"
        )
    rows = jax.tree.map(lambda a: np.asarray(a, np.float64), rows)
    level, num_states, num_kept = rows.level, rows.x.shape[1], rows.m.shape[1]
    if start is None:
        first = start_level(dataclasses.replace(solver, rows=rows))
        start = (first.alpha[0] * mean, np.hypot(first.alpha[0] * std, first.sigma[0]))
    # The vector s = (x_1 ... x_J, m_1 ... m_K) has a mean and a covariance; a row is s <- A s + b, in two halves.
    size, one = num_states + num_kept, np.eye(num_states + num_kept)
    centre, covariance = np.zeros(size), np.zeros((size, size))
    centre[0], covariance[0, 0] = start[0], start[1] ** 2
    for i in range(rows.x0.shape[0]):
        if rows.churn is not None:
            covariance[0, 0] += rows.churn[i] ** 2
        alpha, sigma = level.alpha[i], level.sigma[i]
        gain = (rows.x0[i] * alpha * std**2 + rows.eps[i] * sigma) / ((alpha * std) ** 2 + sigma**2)
        evaluate = np.concatenate([one[:num_states], gain * one[:1], one[num_states : size - 1]])
        advance = np.concatenate([[[*rows.x[i], *rows.m[i]]], one[: num_states - 1], one[num_states:]])
        centre = evaluate @ centre
        centre[num_states] += rows.x0[i] * mean - gain * alpha * mean
        centre, step = advance @ centre, advance @ evaluate
        covariance = step @ covariance @ step.T
        if rows.noise is not None:
            covariance[0, 0] += rows.noise[i] ** 2
    return centre[0], np.sqrt(covariance[0, 0])


def check_solver(
    make: MakeSolver,
    order: float | Mapping[str, float] | None = None,
    *,
    processes: Mapping[str, Process] = _PROCESSES,
    sizes: Sequence[int] = (200, 400),
    tolerance: float = 0.15,
) -> dict[str, float]:
    """Returns the measured orders of convergence {name: order} of a solver that passes these checks.

    - The last row of the table is the final denoise; the program has no branch, and draws no random bits if the solver
      is deterministic.
    - Deterministic solvers converge with the given order within the tolerance, on every process, for Gaussian and
      mixture data.
    - For stochastic solvers the mean and standard deviation of Gaussian samples converge to those of the data with an
      order of at least 0.8.

    Args:
      make: levels -> solver, a table.
      order: that of a deterministic solver; {"gaussian": ..., "mixture": ...} if its leading error vanishes for
        Gaussian data, as that of `solvers.midpoint` does.
      processes: name -> process.
      sizes: two numbers of levels.
      tolerance: the allowed difference between the measured order and `order`.

    Raises:
      AssertionError: if a check fails.
      ValueError: if the solver is deterministic and order is None.

    >>> from diffusers_fn.solvers import euler
    >>> {name: round(figure) for name, figure in check_solver(euler, 1, sizes=(50, 100)).items()}["edm/mixture"]
    1
    """
    figures = {}
    for name, process in processes.items():
        solver = make(graded_levels(process, sizes[0]))
        _check_program(solver)
        if not solver.stochastic:
            if order is None:
                raise ValueError("a deterministic solver needs its order: check_solver(make, order=2)")
            for data in ("gaussian", "mixture"):
                declared = order[data] if isinstance(order, Mapping) else order
                measured = figures[f"{name}/{data}"] = measure_order(make, process, data, sizes=sizes)
                if not abs(measured - declared) <= tolerance:
                    raise AssertionError(f"order {measured:.3f} on {name} levels, {data} data; declared {declared}")
            continue
        solvers = [make(graded_levels(process, num_levels)) for num_levels in sizes]
        errors = [np.abs(np.array(marginal_moments(solver)) - _denoised_moments(solver)).max() for solver in solvers]
        measured = figures[f"{name}/moments"] = float(-np.log(errors[1] / errors[0]) / np.log(sizes[1] / sizes[0]))
        if not (measured >= 0.8 or errors[1] < 1e-9):
            raise AssertionError(
                f"on {name} levels the moments of samples converge to those of the data with order {measured:.3f}, "
                "below 0.8"
            )
    return figures


def _states(data: str, solver: Solver, x: jax.Array) -> jax.Array:
    denoise = gaussian(MEAN, STD) if data == "gaussian" else mixture(WEIGHTS, MEANS, STDS, independent=True)
    return sample(None, denoise, solver, x, final_denoise=False).x0


def _denoised_moments(solver: Solver) -> np.ndarray:
    """Mean and standard deviation of x0_hat for the exact marginal at the last level, the limit of every solver."""
    alpha, sigma = solver.rows.level.alpha[-1], solver.rows.level.sigma[-1]
    return np.array([MEAN, alpha * STD**2 / np.hypot(alpha * STD, sigma)])


def _check_program(solver: Solver) -> None:
    rows = solver.rows
    if isinstance(rows, LinearRow):
        last = [*rows.x[-1], rows.x0[-1] - 1.0, rows.eps[-1], rows.m[-1, 0] - 1.0, *rows.m[-1, 1:]]
        if np.any(np.abs(last) > 1e-12):
            raise AssertionError("the last row of a table must be the final denoise, x' = x0_hat")
    key = jax.random.key(0) if solver.stochastic else None
    denoise: Denoiser = gaussian(MEAN, STD)
    program = str(jax.make_jaxpr(lambda solver, x: sample(key, denoise, solver, x).x0)(solver, jnp.ones((2, 3))))
    for word in ("cond", "while") if solver.stochastic else ("cond", "while", "random", "threefry"):
        if word in program:
            raise AssertionError(f"the program of this solver contains {word!r}")


def _double_precision() -> contextlib.AbstractContextManager[Any]:
    """Double precision inside the block, whatever JAX is set to outside."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return getattr(jax.experimental, "enable_x64")()  # noqa: B009, the older name
