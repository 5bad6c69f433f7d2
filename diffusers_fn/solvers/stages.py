"""What methods with several evaluations a hop share: levels in between, and stages laid out as rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.processes import Process, at_log_snr, between
from diffusers_fn.solvers.base import Solver, linear_solver


def interleave(*columns: Array) -> Array:
    """[S M, ...] of S arrays [M, ...]: the first entry of each, then the second of each, ..."""
    stacked = namespace(columns).stack(columns, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def join_levels(*parts: Level) -> Level:
    """The levels one part after the other."""
    return jax.tree.map(lambda *a: namespace(a).concatenate(a), *parts)


def from_stages(
    visited: Sequence[Level],
    last: Level,
    scales: Sequence[Array],
    weights: Sequence[Sequence[Any]],
    x0: Sequence[Array],
    eps: Sequence[Array],
    **columns: Any,
) -> Solver:
    """The solver whose hops have S stages each: the network is evaluated at x_0 = x, ..., x_{S-1} and x' = x_S, with

        x_i / scales[i] = x + sum_k weights[i][k] m_k,      m_k = x0[k] x0_hat + eps[k] eps_hat at x_k.

    Every row goes on from the stage before, so that one state is enough.

    visited: S levels [M], those of the stages; last: Level[1].
    scales, weights: S + 1 each; the first are 1 and ().
    """
    num_stages = len(visited)
    ones = np.ones(visited[0].sigma.shape)
    scales = [scale * ones for scale in scales]

    def weight(i: int, k: int) -> Array:
        return weights[i][k] * ones if k < len(weights[i]) else 0.0 * ones

    m = []
    for lag in range(num_stages):
        moved = [scales[i + 1] * (weight(i + 1, i - lag) - weight(i, i - lag)) for i in range(lag, num_stages)]
        m.append(interleave(*[0.0 * ones] * lag, *moved))
    return linear_solver(
        join_levels(jax.tree.map(interleave, *visited), last),
        x=[interleave(*(after / before for before, after in itertools.pairwise(scales)))],
        x0=interleave(*(a * ones for a in x0)),
        eps=interleave(*(a * ones for a in eps)),
        m=m,
        **columns,
    )


def on_chord(frm: Level, to: Level, fraction: float, process: Process | None) -> tuple[Level, Array]:
    """(level, scale): where the network is asked at a point of the chord between two levels, and what x is there.

    The chord is the straight line in the plane of alpha and sigma, and x obeys (*) along it as along any path. But a
    network knows the levels of its process alone, so it is asked where sigma / alpha is the same, at scale x.
    """
    if fraction in (0, 1):
        return (to if fraction else frm), 1.0
    xp = namespace(frm, to)
    along = lambda u: jax.tree.map(lambda a, b: (1 - u) * a + u * b, frm, to)  # noqa: E731
    point = along(fraction)
    if process is not None:
        level = at_log_snr(process, log_snr(point))
        return level, level.sigma / point.sigma
    _check_circle(frm, to)
    # From pure noise no ratio of log SNR tells the place: a nearer point of the chord does.
    start = jax.tree.map(lambda a, b: xp.where(frm.alpha == 0, b, a), frm, along(0.5 * fraction))
    share = (log_snr(point) - log_snr(start)) / (log_snr(to) - log_snr(start))
    level = between(start, to, share, None)
    return level, level.sigma / point.sigma


def _check_circle(frm: Level, to: Level) -> None:
    alpha, sigma, next_alpha, next_sigma = (concrete(a) for a in (frm.alpha, frm.sigma, to.alpha, to.sigma))
    if alpha is None or sigma is None or next_alpha is None or next_sigma is None:
        return
    if np.any((alpha == 0) & (abs(next_alpha**2 + next_sigma**2 - 1) < 1e-6)):
        raise ValueError(
            "out of pure noise (alpha = 0) two levels do not tell which lie between them on a variance-preserving "
            "process: pass the process, e.g. process=processes.cosine()"
        )
