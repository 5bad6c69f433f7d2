"""Inversion that returns exactly, whatever the network: two DDIM paths, each driven by the noise the other predicts.

Wallace et al., "EDICT: Exact Diffusion Inversion via Coupled Transformations", 2023, https://arxiv.org/abs/2211.12446.
With u = x / alpha, v = y / alpha and rho = sigma / alpha, a hop is

    u <- u + (rho' - rho) eps_hat(v),   v <- v + (rho' - rho) eps_hat(u),
    u <- p u + (1 - p) v,               v <- p v + (1 - p) u

and each of the four is undone from what the others left. (The second eps_hat sees alpha u, at its level's own scale;
the paper has alpha' u there, the same where alpha is constant.) The mixing keeps the two together; undone, it
multiplies rounding errors by 1 / p a hop, and u is as large as sigma / alpha. In float32 that would leave few digits,
so u and v are kept as unevaluated sums of two numbers, and the network sees the leading ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import check_data, concrete, expand, namespace, working_dtype
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.solvers.plans import check_alpha, check_plan

Sum = tuple[jax.Array, jax.Array]  # a number as an unevaluated sum: leading part, rest
Row = tuple[Level, jax.Array]  # a hop: level and rho' - rho


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coupled:
    """The state of two coupled paths at a level; [B, ...] each.

    Attributes:
      u: x / alpha of the first path.
      v: that of the second one.
      u_rest: what u lacks in its own precision.
      v_rest: what v lacks.
    """

    u: jax.Array
    v: jax.Array
    u_rest: jax.Array
    v_rest: jax.Array


def couple(x: jax.Array, alpha: Any = 1.0) -> Coupled:
    """Returns the state in which both paths are at x, at a level's alpha: to start `sample_coupled` from noise.

    Raises:
      ValueError: if x is not of floating type.

    >>> couple(jnp.ones((1, 2)), 0.5).v
    Array([[2., 2.]], dtype=float32)
    """
    check_data(x=x)
    u = jnp.asarray(x, working_dtype(x)) / expand(alpha, x)
    return Coupled(u, u, jnp.zeros_like(u), jnp.zeros_like(u))


def invert_coupled(
    denoise: Denoiser,
    levels: Level,
    x0: jax.Array,
    *,
    mixing: Any = 0.93,
    scan: Callable[..., Any] = jax.lax.scan,
) -> Coupled:
    """Returns the state at levels[0] that `sample_coupled` turns back into x0, to rounding, whatever the network.

    The steps of `sample_coupled` undone one by one (Wallace et al. 2023, https://arxiv.org/abs/2211.12446, eq. 15).

    Args:
      denoise: the denoiser, its conditioning bound.
      levels: Level[N], the plan, noisiest first, with alpha > 0.
      x0: [B, ...] clean data.
      mixing: [] in (0, 1], the share of itself that each path keeps in a hop; the paper's p, for about 50 levels: with
        many more take it nearer to 1, since mixing^N is what is undone.
      scan: as for `sample`.

    Raises:
      ValueError: if levels are no plan, x0 is not of floating type or a readable mixing is outside (0, 1].

    >>> from diffusers_fn import grids, oracles
    >>> denoise, levels = oracles.gaussian(0.0, 1.0), grids.karras(50)
    >>> state = invert_coupled(denoise, levels, jnp.full((1, 2), 0.3))
    >>> sample_coupled(denoise, levels, state)
    Array([[0.3, 0.3]], dtype=float32)
    """
    start = couple(x0)
    rows = jax.tree.map(lambda a: a[::-1], _rows(levels, start.u))
    forget, _ = _mixing(mixing, start.u)

    def body(paths: tuple[Sum, Sum], row: Row) -> tuple[tuple[Sum, Sum], None]:
        u, v = paths
        v = _add(v, _times(_add(v, _minus(u)), forget))
        u = _add(u, _times(_add(u, _minus(v)), forget))
        v = _add(v, _minus(_push(denoise, row, u)))
        u = _add(u, _minus(_push(denoise, row, v)))
        return (u, v), None

    (u, v), _ = scan(body, ((start.u, start.u_rest), (start.v, start.v_rest)), rows)
    return Coupled(u[0], v[0], u[1], v[1])


def sample_coupled(
    denoise: Denoiser,
    levels: Level,
    state: Coupled,
    *,
    mixing: Any = 0.93,
    scan: Callable[..., Any] = jax.lax.scan,
) -> jax.Array:
    """Returns x0 from a coupled state at levels[0], with two evaluations a level; the equations are this module's.

    Wallace et al. 2023, https://arxiv.org/abs/2211.12446, eq. 14. The last hop leads to the clean data.

    Args:
      denoise: the denoiser, its conditioning bound; another one than at the inversion edits the data.
      levels: Level[N], noisiest first, with alpha > 0.
      state: from `invert_coupled`, or `couple(x, levels.alpha[0])` with noise x.
      mixing: as for `invert_coupled`.
      scan: as for `sample`.

    Raises:
      ValueError: as `invert_coupled`.

    >>> from diffusers_fn import grids, oracles
    >>> sample_coupled(oracles.gaussian(0.0, 1.0), grids.karras(200), couple(jnp.full((1, 2), 80.0))).round(0)
    Array([[1., 1.]], dtype=float32)
    """
    check_data(u=state.u, v=state.v, u_rest=state.u_rest, v_rest=state.v_rest)
    rows = _rows(levels, state.u)
    _, share = _mixing(mixing, state.u)

    def body(paths: tuple[Sum, Sum], row: Row) -> tuple[tuple[Sum, Sum], None]:
        u, v = paths
        u = _add(u, _push(denoise, row, v))
        v = _add(v, _push(denoise, row, u))
        u = _add(u, _times(_add(v, _minus(u)), share))
        v = _add(v, _times(_add(u, _minus(v)), share))
        return (u, v), None

    (u, _), _ = scan(body, ((state.u, state.u_rest), (state.v, state.v_rest)), rows)
    return u[0]


def _rows(levels: Level, u: jax.Array) -> Row:
    """The N hops from each level to the next, the last one to the clean data."""
    check_plan(levels)
    check_alpha(levels)
    xp = namespace(levels)
    rho = levels.sigma / levels.alpha
    hop = xp.concatenate([rho[1:], xp.zeros_like(rho[:1])]) - rho
    return jax.tree.map(lambda a: jnp.asarray(a, u.dtype), (levels, hop))


def _mixing(mixing: Any, u: jax.Array) -> tuple[Sum, Sum]:
    """((1 - p) / p, 1 - p) as sums: what undoes the mixing, and what mixes."""
    known = concrete(mixing)
    if known is not None and not (known.shape == () and 0 < known <= 1):
        raise ValueError(f"mixing must be one number in (0, 1]; got {mixing}")
    p = jnp.asarray(mixing, u.dtype)
    share = _two_sum(jnp.ones_like(p), -p)
    quotient = share[0] / p
    product = _two_product(quotient, p)
    return (quotient, ((share[0] - product[0]) - product[1] + share[1]) / p), share


def _push(denoise: Denoiser, row: Row, path: Sum) -> Sum:
    """(rho' - rho) eps_hat at a path's leading part."""
    level, hop = row
    x = expand(level.alpha, path[0]) * path[0]
    push = expand(hop, x) * denoise(x, level).eps.astype(x.dtype)
    push = jax.lax.optimization_barrier(push)  # rounded here, the same up and down, and not fused into a sum
    return push, jnp.zeros_like(push)


# Sums of two floats (Dekker, "A floating-point technique for extending the available precision", 1971).


def _two_sum(a: jax.Array, b: jax.Array) -> Sum:
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _two_product(a: jax.Array, b: jax.Array) -> Sum:
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: jax.Array) -> Sum:
    """a as a sum of two numbers of half its digits."""
    scaled = (2.0 ** ((jnp.finfo(a.dtype).nmant + 2) // 2) + 1.0) * a
    high = scaled - (scaled - a)
    return high, a - high


def _add(a: Sum, b: Sum) -> Sum:
    total, rest = _two_sum(a[0], b[0])
    return _two_sum(total, rest + (a[1] + b[1]))


def _minus(a: Sum) -> Sum:
    return -a[0], -a[1]


def _times(a: Sum, b: Sum) -> Sum:
    product, rest = _two_product(a[0], b[0])
    return _two_sum(product, rest + (a[0] * b[1] + a[1] * b[0]))
