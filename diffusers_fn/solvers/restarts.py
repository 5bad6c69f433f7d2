"""Plans that return to noisier levels: rows of several runs one after the other, with noise in between.

Restart sampling (Xu et al., "Restart Sampling for Improving Generative Processes", 2023,
https://arxiv.org/abs/2306.14878, algorithm 1) and the jumps of RePaint (Lugmayr et al. 2022,
https://arxiv.org/abs/2201.09865, algorithm 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import concrete, namespace, safe_sqrt
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level, log_snr, transition
from diffusers_fn.solvers.base import LinearRow, Solver
from diffusers_fn.solvers.plans import check_plan

__all__ = ["Segment", "with_restarts"]

Segment = tuple[int | Level, int, int]


def with_restarts(
    make: Callable[[Level], Solver], levels: Level, segments: Sequence[Segment], *, s_noise: ArrayLike = 1.0
) -> Solver:
    """Returns make(levels), with segments of the plan repeated after noise has been added to their result.

    For a segment (first, last, times), once the state has reached levels[last], noise

        x = (alpha_first / alpha_last) x + s_noise sqrt(var) z,     see `transition`,

    returns it to levels[first], and make(levels[first : last + 1]) solves down to levels[last] again; this is
    repeated `times` times. Each repetition starts like a new run: multistep methods start with low order. RePaint with
    jumps of j levels and r passes has the segments (0, j, r - 1), (j, 2j, r - 1), ...

    Args:
      make: levels -> table (see `linear_solver`), e.g. `solvers.heun`.
      levels: Level[N].
      segments: (first, last, times) each, 0 <= first < last < N, in the order of `last`. `first` may also be a
        Level[M], a separate plan for the way down, which ends at levels[last].
      s_noise: [], a factor for the noise (1.003 for EDM in the paper).

    Raises:
      ValueError: if segments do not fit the plan, or `make` builds no tables or needs more levels than a segment has.

    >>> from diffusers_fn import grids
    >>> from diffusers_fn.solvers.ddim import ddim
    >>> rows = with_restarts(ddim, grids.karras(4), [(1, 3, 1)]).rows
    >>> rows.level.sigma.round(1), rows.churn.round(1)
    (array([80. ,  9.7,  0.5,  9.7,  0.5,  0. ]), array([0. , 0. , 0. , 9.7, 0. , 0. ]))
    """
    check_plan(levels)
    part = lambda first, last: levels[first : last + 1]  # noqa: E731
    end, at, plans = levels.sigma.shape[0] - 1, 0, []
    for first, last, times in segments:
        again = first if isinstance(first, Level) else part(first, last)
        _check_segment(again, first, last, times, at, part(last, last), end)
        if last > at:
            plans.append(part(at, last))
        plans.extend([again] * times)
        at = last
    if at < end or not plans:
        plans.append(part(at, end))
    made = {id(plan): make(plan) for plan in {id(plan): plan for plan in plans}.values()}
    solvers = [made[id(plan)] for plan in plans]
    for solver in solvers:
        if not isinstance(solver.rows, LinearRow):
            raise ValueError(
                f"make must build tables, solvers whose rows are of type LinearRow; got {type(solver.rows).__name__}"
            )
    if len(plans) == 1:
        return solvers[0]
    return _one_after_the_other(plans, solvers, s_noise)


def _one_after_the_other(plans: list[Level], solvers: list[Solver], s_noise: Any) -> Solver:
    """The rows of the solvers in turn, with noise up to the first level of a plan before its first evaluation."""
    num_states = max(solver.rows.x.shape[1] for solver in solvers)
    num_values = max(solver.rows.m.shape[1] for solver in solvers)
    optional = [
        name for name in ("noise", "noise_range") if any(getattr(solver.rows, name) is not None for solver in solvers)
    ]
    xp = namespace(plans, [solver.rows for solver in solvers], s_noise)
    pieces = []
    for i, solver in enumerate(solvers):
        rows = solver.rows
        none = 0.0 * rows.x0
        columns = {name: getattr(rows, name) for name in ("churn", "nominal_churn", *optional)}
        columns = {name: none if column is None else column for name, column in columns.items()}
        rows = dataclasses.replace(rows, x=_widen(rows.x, num_states), m=_widen(rows.m, num_values), **columns)
        if i > 0:
            _, var = transition(plans[i][0], plans[i - 1][-1])
            churn = safe_sqrt(rows.churn[:1] ** 2 + s_noise**2 * var)
            nominal_churn = safe_sqrt(rows.nominal_churn[:1] ** 2 + var)
            rows = dataclasses.replace(
                rows,
                churn=xp.concatenate([churn, rows.churn[1:]]),
                nominal_churn=xp.concatenate([nominal_churn, rows.nominal_churn[1:]]),
            )
        if i < len(solvers) - 1:  # drop the final denoise, at whose alpha the state is, and scale x for the next plan
            ratio = plans[i + 1].alpha[0] / rows.level.alpha[-1]
            rows = _scale_last(jax.tree.map(lambda a: a[:-1], rows), ratio)
        pieces.append(rows)
    joined = jax.tree.map(lambda *a: xp.concatenate(a), *pieces)
    return dataclasses.replace(solvers[-1], rows=joined, stochastic=True)


def _widen(columns: Any, num: int) -> Any:
    """[R, J, *S] -> [R, num, *S], with zeros for earlier states or values."""
    missing = np.zeros((columns.shape[0], num - columns.shape[1], *columns.shape[2:]), columns.dtype)
    return namespace(columns).concatenate([columns, missing], axis=1)


def _scale_last(rows: LinearRow, ratio: Any) -> LinearRow:
    """The rows with the new state of the last one multiplied by a ratio."""
    xp = namespace(rows, ratio)

    def scaled(a: Any) -> Any:
        return None if a is None else xp.concatenate([a[:-1], ratio * a[-1:]])

    return dataclasses.replace(rows, x=scaled(rows.x), m=scaled(rows.m), noise=scaled(rows.noise))


def _check_segment(again: Level, first: Any, last: int, times: int, at: int, target: Level, end: int) -> None:
    allowed = f"indices 0 <= first < last <= {end} of the plan, last not before that of the segment before, times >= 1"
    own = isinstance(first, Level)
    if not (0 < last <= end and last >= at and times >= 1 and (own or 0 <= first < last)):
        given = "levels" if own else first
        raise ValueError(f"a segment is (first, last, times) with {allowed}; got ({given}, {last}, {times})")
    if not own:
        return
    check_plan(again)
    there, here = concrete(log_snr(again[-1])), concrete(log_snr(target[-1]))
    if there is not None and here is not None and not np.allclose(there, here, rtol=1e-5, atol=1e-6):
        raise ValueError(f"the levels of a segment must end at levels[last]: log SNR {here}; got {there}")
