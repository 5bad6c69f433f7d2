"""EDICT: inversion that is exact for every network, by two DDIM paths, each with the noise predicted on the other.

Wallace et al., "EDICT: Exact Diffusion Inversion via Coupled Transformations", 2023, https://arxiv.org/abs/2211.12446.
With u = x / alpha, v = y / alpha, rho = sigma / alpha and the mixing p, a sampler step is

    u <- u + (rho' - rho) eps_hat(v)          v <- v + (rho' - rho) eps_hat(u)                 (eq. 14)
    u <- p u + (1 - p) v                      v <- p v + (1 - p) u

and inversion undoes the four assignments in reverse order (eq. 15). (The second eps_hat is evaluated at alpha u; the
paper has alpha' u there, which is the same where alpha is constant.)

Undoing the mixing, which keeps the two paths together, multiplies rounding errors by 1 / p per step, and u is as large
as sigma / alpha. Float32 alone would lose most digits, so u and v are stored as unevaluated sums of two numbers, and
the network is evaluated at their leading parts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import check_data, concrete, expand, namespace, working_dtype
from diffusers_fn._types import ArrayLike, Scan
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.solvers.plans import check_alpha, check_plan

__all__ = ["Coupled", "couple", "invert_coupled", "sample_coupled"]


def __dir__() -> list[str]:
    return __all__


_Sum = tuple[jax.Array, jax.Array]  # a number as an unevaluated sum (leading part, rest)
_Step = tuple[Level, jax.Array]  # a sampler step: its level and rho' - rho


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coupled:
    """The state of the two coupled paths at a level; [B, ...] each.

    Attributes:
      u: x / alpha of the first path.
      v: y / alpha of the second path.
      u_rest: the rounding error of u: u + u_rest is the value in twice the precision.
      v_rest: the rounding error of v.
    """

    u: jax.Array
    v: jax.Array
    u_rest: jax.Array
    v_rest: jax.Array


def couple(x: jax.Array, alpha: ArrayLike = 1.0) -> Coupled:
    """Returns the state with both paths at x [B, ...], to start `sample_coupled` from noise.

    Args:
      x: [B, ...].
      alpha: [] or [B], alpha of the level at which x is.

    Raises:
      ValueError: if x has no floating dtype.

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
    mixing: ArrayLike = 0.93,
    scan: Scan = jax.lax.scan,
) -> Coupled:
    """Returns the state at levels[0] that `sample_coupled` turns back into x0 up to rounding, for every network.

    It undoes the steps of `sample_coupled` (Wallace et al. 2023, https://arxiv.org/abs/2211.12446, eq. 15), with two
    network evaluations per level.

    Args:
      denoise: the denoiser, its conditioning bound.
      levels: Level[N], the plan, noisiest first, with alpha > 0.
      x0: [B, ...] clean data.
      mixing: [] in (0, 1], the paper's p. The default suits about 50 levels; take it closer to 1 for many more, since
        the inversion amplifies rounding errors by mixing^-N.
      scan: as for `sample`.

    Raises:
      ValueError: if levels are not a plan, x0 has no floating dtype or mixing (not traced) is outside (0, 1].

    >>> from diffusers_fn import grids, oracles
    >>> denoise, levels = oracles.gaussian(0.0, 1.0), grids.karras(50)
    >>> state = invert_coupled(denoise, levels, jnp.full((1, 2), 0.3))
    >>> sample_coupled(denoise, levels, state)
    Array([[0.3, 0.3]], dtype=float32)
    """
    start = couple(x0)
    steps = jax.tree.map(lambda a: a[::-1], _steps(levels, start.u))
    unmix, _ = _mixing(mixing, start.u)

    def body(paths: tuple[_Sum, _Sum], step: _Step) -> tuple[tuple[_Sum, _Sum], None]:
        u, v = paths
        v = _add(v, _times(_add(v, _minus(u)), unmix))  # v <- (v - (1 - p) u) / p
        u = _add(u, _times(_add(u, _minus(v)), unmix))
        v = _add(v, _minus(_change(denoise, step, u)))
        u = _add(u, _minus(_change(denoise, step, v)))
        return (u, v), None

    (u, v), _ = scan(body, ((start.u, start.u_rest), (start.v, start.v_rest)), steps)
    return Coupled(u[0], v[0], u[1], v[1])


def sample_coupled(
    denoise: Denoiser,
    levels: Level,
    state: Coupled,
    *,
    mixing: ArrayLike = 0.93,
    scan: Scan = jax.lax.scan,
) -> jax.Array:
    """Returns x0 [B, ...] from a coupled state at levels[0], with two network evaluations per level.

    Wallace et al. 2023, https://arxiv.org/abs/2211.12446, eq. 14; the equations are in this module's docstring. The
    last step leads to the clean data.

    Args:
      denoise: the denoiser, its conditioning bound; with another conditioning than in the inversion, x0 is edited.
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
    steps = _steps(levels, state.u)
    _, mix = _mixing(mixing, state.u)

    def body(paths: tuple[_Sum, _Sum], step: _Step) -> tuple[tuple[_Sum, _Sum], None]:
        u, v = paths
        u = _add(u, _change(denoise, step, v))
        v = _add(v, _change(denoise, step, u))
        u = _add(u, _times(_add(v, _minus(u)), mix))  # u <- u + (1 - p) (v - u)
        v = _add(v, _times(_add(u, _minus(v)), mix))
        return (u, v), None

    (u, _), _ = scan(body, ((state.u, state.u_rest), (state.v, state.v_rest)), steps)
    return u[0]


def _steps(levels: Level, u: jax.Array) -> _Step:
    """Returns the N steps, from each level to the next and from the last one to the clean data."""
    check_plan(levels)
    check_alpha(levels)
    xp = namespace(levels)
    rho = levels.sigma / levels.alpha
    rho_change = xp.concatenate([rho[1:], xp.zeros_like(rho[:1])]) - rho
    return jax.tree.map(lambda a: jnp.asarray(a, u.dtype), (levels, rho_change))


def _mixing(mixing: Any, u: jax.Array) -> tuple[_Sum, _Sum]:
    """Returns (1 - p) / p, which undoes the mixing, and 1 - p, which mixes, as sums."""
    known = concrete(mixing)
    if known is not None and not (known.shape == () and 0 < known <= 1):
        raise ValueError(f"mixing must be one number in (0, 1]; got {mixing}")
    p = jnp.asarray(mixing, u.dtype)
    mix = _two_sum(jnp.ones_like(p), -p)
    quotient = mix[0] / p
    product = _two_product(quotient, p)
    return (quotient, ((mix[0] - product[0]) - product[1] + mix[1]) / p), mix


def _change(denoise: Denoiser, step: _Step, path: _Sum) -> _Sum:
    """Returns (rho' - rho) eps_hat, evaluated at the leading part of a path."""
    level, rho_change = step
    x = expand(level.alpha, path[0]) * path[0]
    change = expand(rho_change, x) * denoise(x, level).eps.astype(x.dtype)
    # Sampling and inversion must round this product alike: the barrier keeps XLA from fusing it into a sum.
    change = jax.lax.optimization_barrier(change)
    return change, jnp.zeros_like(change)


# Arithmetic of sums of two floats (Dekker, "A floating-point technique for extending the available precision", 1971).


def _two_sum(a: jax.Array, b: jax.Array) -> _Sum:
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _two_product(a: jax.Array, b: jax.Array) -> _Sum:
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: jax.Array) -> _Sum:
    """Returns a as a sum of two numbers with half its digits each."""
    scaled = (2.0 ** ((jnp.finfo(a.dtype).nmant + 2) // 2) + 1.0) * a
    high = scaled - (scaled - a)
    return high, a - high


def _add(a: _Sum, b: _Sum) -> _Sum:
    total, rest = _two_sum(a[0], b[0])
    return _two_sum(total, rest + (a[1] + b[1]))


def _minus(a: _Sum) -> _Sum:
    return -a[0], -a[1]


def _times(a: _Sum, b: _Sum) -> _Sum:
    product, rest = _two_product(a[0], b[0])
    return _two_sum(product, rest + (a[0] * b[1] + a[1] * b[0]))
