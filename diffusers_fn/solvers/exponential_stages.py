"""The stages of single-step exponential methods as rows: each goes from its hop's start to the next level.

R rows, M hops; `place` [R] is a row's place in its hop, 0, 1 or 2, and `size` [R] the hop's number of rows. So the hop
of row n starts at row n - place[n].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import namespace, safe_sqrt
from diffusers_fn.levels import Array, Level, log_snr, snr_ratio
from diffusers_fn.processes import Process, at_log_snr, between
from diffusers_fn.solvers.forms import Form, Hop, exact_hop
from diffusers_fn.solvers.stages import join_levels

# Where the levels inside a hop lie, in shares of its step in lambda.
SHARES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


def places(orders: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(place, size) of the rows of hops of these orders.

    >>> places([1, 3])
    (array([0, 0, 1, 2]), array([1, 3, 3, 3]))
    """
    return np.concatenate([np.arange(order) for order in orders]), np.repeat(orders, orders)


def inner_levels(
    frm: Level, down: Level, to: Level, last: Level, orders: Sequence[int], process: Process | None
) -> Level:
    """Level[R]: each hop's start and the levels inside it, at SHARES of the way from `frm` to `down` in log SNR.

    `down` is where the hop arrives before noise takes it up to `to`; an inner level may lie beyond `to` then, where
    without a process it is interpolated between the start and the plan's `last` level.
    """
    hop, stage = np.arange(len(orders)), np.zeros(len(orders), int)
    parts = [frm]
    for order, shares in SHARES.items():
        mine = np.flatnonzero(np.equal(orders, order))
        for j, share in enumerate(shares if mine.size else ()):
            start, arrival, end = (jax.tree.map(lambda a, mine=mine: a[mine], level) for level in (frm, down, to))
            if down is to:
                parts.append(between(start, end, share, process))
            else:
                parts.append(_inside(start, arrival, end, last, share, process))
            hop, stage = np.concatenate([hop, mine]), np.concatenate([stage, np.full(mine.size, j + 1)])
    in_order = np.lexsort((stage, hop))
    return jax.tree.map(lambda a: a[in_order], join_levels(*parts))


def _inside(frm: Level, down: Level, to: Level, last: Level, share: float, process: Process | None) -> Level:
    xp = namespace(frm, down, to)
    start, end = log_snr(frm), log_snr(to)
    middle = (1 - share) * start + share * log_snr(down)
    if process is not None:
        return at_log_snr(process, middle)
    fraction = (middle - start) / (end - start)
    inside = between(frm, to, xp.clip(fraction, 0.0, 1.0))
    if share <= 0.5:  # never beyond `to`, as eta <= 1
        return inside
    last = jax.tree.map(lambda a, b: xp.broadcast_to(a, np.shape(b)), last, to)
    beyond = between(frm, last, xp.clip((middle - start) / (log_snr(last) - start), 0.0, 1.0))
    return jax.tree.map(lambda a, b: xp.where(fraction > 1.0, a, b), beyond, inside)


def ladder(at: Level, ends: Level, orders: Sequence[int]) -> Level:
    """Level[R]: where each row goes, the next level inside its hop or the hop's end; `ends` is Level[M]."""
    hop = np.repeat(np.arange(len(orders)), orders)
    final = np.append(np.diff(hop) > 0, True)
    following = np.minimum(np.arange(hop.size) + 1, hop.size - 1)
    xp = namespace(at, ends)
    along = lambda a: final.reshape(-1, *(1,) * (np.ndim(a) - 1))  # noqa: E731
    return jax.tree.map(lambda a, end: xp.where(along(a), end[hop], a[following]), at, ends)


def ancestral_end(frm: Level, to: Level, eta: Any, floor: Level | None = None) -> tuple[Level, Array]:
    """(down, s): hops end at sqrt(sigma'^2 - s^2), from where s of noise leads up to sigma'; as in `ddim`.

    floor: no hop ends below the log SNR of this level.
    """
    xp, r = namespace(frm, to, eta), snr_ratio(frm, to)
    noise = eta * to.sigma * xp.sqrt(1.0 - r)
    sigma = to.sigma * xp.sqrt((1.0 - eta**2) + eta**2 * r)
    if floor is not None:
        least = to.alpha * floor.sigma / floor.alpha
        noise = xp.where(sigma < least, safe_sqrt(to.sigma**2 - least**2), noise)
        sigma = xp.maximum(sigma, least)
    return Level(to.alpha, sigma, to.t), noise


def hop_from_start(at: Level, ends: Level, place: np.ndarray, form: Form, eta: Any = 0.0) -> tuple[Hop, Array]:
    """(hop, curve) of each row, from its hop's start to `ends`, [R, *S].

    curve: what a constant second derivative of m with respect to (u - lambda) / h is multiplied by.
    """
    xp = namespace(at, ends)
    start = jax.tree.map(lambda a: a[np.arange(place.size) - place], at)
    pairs = jax.tree.map(lambda a, b: xp.stack([a, b]), start, ends)
    with np.errstate(divide="ignore", invalid="ignore"):
        hop = jax.tree.map(lambda a: a[0], exact_hop(pairs, form, eta))
        half_step = 0.5 * (log_snr(ends) - log_snr(start))
        return hop, 0.5 * hop.rate - form.sign * hop.slope / (hop.kappa * half_step)


def stage_weights(
    at: Level,
    to: Level,
    place: np.ndarray,
    size: np.ndarray,
    hop: Hop,
    curve: Array,
    *,
    taylor: bool = False,
    nested: bool = False,
) -> list[Array]:
    """[R, *S] each: what the hop's m_0, m_1, m_2 are multiplied by in a row; zero for those that come later.

    See `singlestep` for the formulas. Shares of the step are those on the way to the levels `to`.
    """
    xp, half_log_snr, end = namespace(at, to, hop), 0.5 * log_snr(at), 0.5 * log_snr(to)
    place, size = (a.reshape(-1, *(1,) * (np.ndim(at.sigma) - 1)) for a in (place, size))
    row = np.arange(place.size)
    start = row - place.reshape(-1)

    def share(k: int) -> Array:
        """r_k, or k where there is no such level yet."""
        known = place >= k
        begin = xp.where(known, half_log_snr[start], 0.0)
        inside = xp.where(known, half_log_snr[np.minimum(start + k, row)], k)
        return (inside - begin) / (xp.where(known, end, 1.0) - begin)

    r1, r2 = share(1), share(2)
    exact = taylor | (size == 3) if not nested else taylor
    second = xp.where(exact, hop.slope, 0.5 * hop.whole) / r1
    if taylor:  # of the parabola through three values
        over = 1.0 / (r2 - r1)
        of_1, of_2 = (r2 * hop.slope - 2.0 * curve) * over / r1, (2.0 * curve - r1 * hop.slope) * over / r2
    else:
        of_1, of_2 = 0.0, hop.slope / r2
    first = xp.where(place == 0, 0.0, xp.where(place == 1, second, of_1))
    last = xp.where(place == 2, of_2, 0.0)
    return [hop.whole - first - last, first, last]


def states_rows(x: Array, weights: list[Array], place: np.ndarray) -> dict[str, list[Array]]:
    """Columns `x` and `m` where each row starts from the state that its hop started from."""
    place = place.reshape(-1, *(1,) * (x.ndim - 1))
    num, xp = int(place.max()) + 1, namespace(x, weights)
    return {"x": [xp.where(place == lag, x, 0.0) for lag in range(num)], "m": _newest_first(weights, place, num)}


def one_state_rows(x: Array, weights: list[Array], place: np.ndarray) -> dict[str, list[Array]]:
    """Columns `x` and `m` where each row goes on from the stage before it, which a method without noise can."""
    place = place.reshape(-1, *(1,) * (x.ndim - 1))
    num, xp = int(place.max()) + 1, namespace(x, weights)
    before = lambda a: xp.concatenate([xp.ones_like(a[:1]), a[:-1]])  # noqa: E731
    ratio = x / xp.where(place > 0, before(x), 1.0)
    moved = [w - xp.where(place > k, ratio * before(w), 0.0) for k, w in enumerate(weights)]
    return {"x": [ratio], "m": _newest_first(moved, place, num)}


def _newest_first(weights: list[Array], place: np.ndarray, num: int) -> list[Array]:
    """Columns by age of what is given by k: m_k was kept place - k rows ago."""
    xp = namespace(weights)
    return [sum(xp.where(place == lag + k, weights[k], 0.0) for k in range(num - lag)) for lag in range(num)]
