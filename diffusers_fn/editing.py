"""Image editing with a sampler: image to image, inpainting, interpolation of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, check_per_example, concrete, expand, working_dtype
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser, Transform, map_x0
from diffusers_fn.levels import Level, add_noise
from diffusers_fn.sampling import SampleOptions, Samples, check_solver, sample
from diffusers_fn.solvers import start_level
from diffusers_fn.solvers.base import Solver, check_maker
from diffusers_fn.solvers.plans import check_plan

__all__ = ["img2img", "inpaint", "replace_x0", "slerp"]


def __dir__() -> list[str]:
    return __all__


def img2img(
    key: jax.Array,
    denoise: Denoiser,
    make: Callable[[Level], Solver],
    levels: Level,
    x0: jax.Array,
    *,
    strength: float = 0.8,
    **options: Unpack[SampleOptions],
) -> Samples:
    """Returns variations of x0: noise is added up to a level of the plan and removed by the solver (SDEdit).

    Meng et al., "SDEdit", 2022, https://arxiv.org/abs/2108.01073, algorithm 1. The last floor(strength N) levels of
    the plan are run.

    Args:
      key: one key, or [B] keys.
      denoise: the denoiser, its conditioning bound.
      make: levels -> solver, e.g. `solvers.dpmpp_2m`.
      levels: Level[N], the whole plan, noisiest first.
      x0: [B, ...] images.
      strength: in (0, 1], the share of the plan to run; at 1 almost nothing of x0 is left.
      **options: passed to `sample`.

    Raises:
      ValueError: if levels are not a plan, x0 has no floating dtype, strength is traced, is not in (0, 1] or leaves
        fewer levels than the solver needs, or make is a solver and not a function of the levels.

    >>> from diffusers_fn import grids, oracles, solvers
    >>> x0, denoise = jnp.full((1, 2), 0.5), oracles.gaussian(0.5, 0.01)
    >>> img2img(jax.random.key(0), denoise, solvers.ddim, grids.karras(10), x0, strength=0.3).x0.round(1)
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_plan(levels)
    check_data(x0=x0)
    check_maker(make)
    solver, levels = _last_levels(make, levels, strength)
    noise_key, sample_key = _random.split(key)
    return sample(sample_key, denoise, solver, _noised(noise_key, x0, levels), **options)


def inpaint(
    key: jax.Array,
    denoise: Denoiser,
    solver: Solver,
    x: jax.Array,
    known: jax.Array,
    keep: jax.Array,
    **options: Unpack[SampleOptions],
) -> Samples:
    """Returns samples that are equal to `known` where `keep` is 1.

    In the kept region the state starts at alpha known + sigma z and `known` replaces the predicted x0 (`replace_x0`),
    so the state follows the noised known image and ends on it. This works with every solver. With a plan that returns
    to noisier levels (`solvers.with_restarts`) it is RePaint, which harmonises the new region with the kept one
    (Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865, algorithm 1).

    Args:
      key: one key, or [B] keys.
      denoise: the denoiser, its conditioning bound.
      solver: the plan, a table or `predictor_corrector`.
      x: [B, ...] the state at the first level, as for `sample`.
      known: [B, ...] clean images; their values where keep is 0 are ignored.
      keep: [B, ...], or 1 in place of some axes; 1 where known is kept, 0 where new content is painted.
      **options: passed to `sample`.

    Raises:
      ValueError: if shapes differ or a dtype is not floating.

    >>> from diffusers_fn import grids, oracles, solvers
    >>> known, keep = jnp.array([[0.3, 9.0]]), jnp.array([[1.0, 0.0]])
    >>> solver, x = solvers.ddim(grids.karras(20)), 80 * jax.random.normal(jax.random.key(0), (1, 2))
    >>> inpaint(jax.random.key(1), oracles.gaussian(-0.8, 0.01), solver, x, known, keep).x0.round(1)
    Array([[ 0.3, -0.8]], dtype=float32)
    """
    check_data(x=x, known=known)
    check_solver(solver)
    noise_key, sample_key = _random.split(key)
    replace = replace_x0(known, keep)
    x = jnp.where(_mask(keep, x), _noised(noise_key, known, start_level(solver)), x)
    return sample(sample_key, replace(denoise), solver, x, **options)


def replace_x0(known: jax.Array, keep: jax.Array) -> Transform:
    """Returns the transform that replaces the predicted x0 by `known` where `keep` is 1, and eps with it.

    Args: as for `inpaint`.

    >>> from diffusers_fn import oracles
    >>> denoise = replace_x0(jnp.array([[0.3, 9.0]]), jnp.array([[1.0, 0.0]]))(oracles.gaussian(0.0, 1.0))
    >>> denoise(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0
    Array([[0.3, 0.8]], dtype=float32)
    """
    return map_x0(lambda x0: jnp.where(_mask(keep, x0), known.astype(x0.dtype), x0))


def slerp(start: jax.Array, end: jax.Array, fraction: ArrayLike) -> jax.Array:
    """Returns the spherical interpolation [B, ...] from start to end, which keeps the norm of noise.

        sin((1 - f) w) / sin(w) start + sin(f w) / sin(w) end,   w the angle between the two, per example

    Shoemake, "Animating rotation with quaternion curves", 1985, section 3.3. If start and end are parallel, the
    interpolation is linear.

    Args:
      start: [B, ...].
      end: [B, ...].
      fraction: [] or [B]; 0 at start, 1 at end.

    Raises:
      ValueError: if shapes differ or a dtype is not floating.

    >>> slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 0.5).round(4)
    Array([[0.7071, 0.7071]], dtype=float32)
    """
    check_data(start=start, end=end)
    check_per_example("fraction", fraction, start)
    flat = lambda a: a.reshape(a.shape[0], -1).astype(working_dtype(a))  # noqa: E731
    a, b = flat(start), flat(end)
    cosine = jnp.sum(a * b, axis=1) / jnp.sqrt(jnp.sum(a**2, axis=1) * jnp.sum(b**2, axis=1))
    cosine = jnp.clip(cosine, -1.0, 1.0)
    parallel = jnp.abs(cosine) > 1.0 - 1e-6
    angle = jnp.arccos(jnp.where(parallel, 0.0, cosine))
    fraction = jnp.broadcast_to(jnp.asarray(fraction, angle.dtype), angle.shape)
    start_weight = jnp.where(parallel, 1.0 - fraction, jnp.sin((1.0 - fraction) * angle) / jnp.sin(angle))
    end_weight = jnp.where(parallel, fraction, jnp.sin(fraction * angle) / jnp.sin(angle))
    mixed = expand(start_weight, a) * a + expand(end_weight, b) * b
    return mixed.reshape(start.shape).astype(start.dtype)


def _last_levels(make: Callable[[Level], Solver], levels: Level, strength: Any) -> tuple[Solver, Level]:
    """Returns the solver for the last floor(strength N) levels of a plan, and those levels."""
    known, total = concrete(strength), levels.sigma.shape[0]
    if known is None or known.shape != ():
        raise ValueError("strength sets the number of steps: it must be one number, known before tracing")
    if not 0 < known <= 1:
        raise ValueError(f"strength must lie in (0, 1]; got {strength}")

    def last(visited: int) -> tuple[Solver, Level]:
        return make(levels[total - visited :]), levels[total - visited :]

    visited = int(np.floor(float(known) * total + 1e-9))
    problem: ValueError | None = None
    if visited:
        try:
            return last(visited)
        except ValueError as error:
            problem = error
    for smallest in range(visited + 1, total + 1):
        try:
            last(smallest)
        except ValueError:
            continue
        raise ValueError(
            f"strength {strength} is too small for this plan of {total} levels and this solver: use "
            f"{np.ceil(1e4 * smallest / total) / 1e4:g} or more"
        ) from problem
    if problem is None:  # the error that the whole plan raises
        return last(total)
    raise problem


def _noised(key: jax.Array, x0: jax.Array, levels: Level) -> jax.Array:
    """Returns x0 with noise at the first of the levels."""
    x0 = jnp.asarray(x0, working_dtype(x0))
    return add_noise(x0, _random.normal(key, x0), jax.tree.map(lambda a: jnp.asarray(a, x0.dtype), levels[0]))


def _mask(keep: jax.Array, x: jax.Array) -> jax.Array:
    """Returns keep as booleans of x's shape."""
    keep = jnp.asarray(keep)
    if keep.ndim != x.ndim or any(k not in (1, n) for k, n in zip(keep.shape, x.shape)):
        raise ValueError(f"keep must have shape {x.shape}, or 1 in place of some axes; got {keep.shape}")
    return jnp.broadcast_to(keep > 0.5, x.shape)
