"""Adaptive-step solution of the probability-flow ODE, through diffrax (the extra `adaptive`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, expand, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process, between
from diffusers_fn.solvers.base import Solver, Step
from diffusers_fn.solvers.plans import check_num_levels, check_plan, neighbours

__all__ = ["AdaptiveRow", "AdaptiveState", "AdaptiveStep", "adaptive"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptiveRow:
    """The path from one level to the next, or R of them stacked; the last is the final denoise.

    Attributes:
      start: [R, *S] level at which the path begins.
      end: [R, *S] level at which it ends.
      u: [R] the starting point on the path: 0, or 1 for the final denoise, which repeats the last path.
      max_step_size: [R] the largest step, as a fraction of the path.
      rtol, atol: [R] tolerances.
    """

    start: Level
    end: Level
    u: Array
    max_step_size: Array
    rtol: Array
    atol: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptiveState:
    x: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptiveStep(Step):
    """A `Step` at the end of a path, with its number of steps, rejected steps included."""

    num_steps: jax.Array


def adaptive(
    levels: Level,
    rtol: ArrayLike = 1e-5,
    atol: ArrayLike = 1e-5,
    *,
    process: Process | None = None,
    max_step_size: ArrayLike = 2.0,
    method: Any = None,
    max_steps: int = 1000,
) -> Solver:
    """Returns the adaptive-step solver of the probability-flow ODE, which stops at every level of the plan.

        dx/du = x0_hat d(alpha)/du + eps_hat d(sigma)/du

    from level to level, where u runs from 0 to 1 linearly in log SNR (see `between`). Two levels, the ends, are enough;
    `emit` gets the state at every level but the first. A step is accepted where the root mean square of
    (error / (atol + rtol |x|)) is at most 1 for every example, so that no example's accuracy depends on the others;
    the batch shares the steps. Song et al. 2021 (https://arxiv.org/abs/2011.13456, appendix D.4) use Dormand and
    Prince's pair with both tolerances 1e-5. Tolerances bound the estimated error of a step, not the error of the
    sample. In float32, tolerances below 1e-6 cannot be met.

    Needs diffrax: `pip install diffusers_fn[adaptive]`. The number of steps is known only after the run: emit
    `step.num_steps`. A path that is not finished after max_steps gives NaN. Inside `jax.shard_map` diffrax needs
    check_vma=False.

    Args:
      levels: Level[N], N >= 2, with alpha > 0, any process.
      rtol: [], relative tolerance; changing it compiles nothing.
      atol: [], absolute tolerance.
      process: on which the path between two levels and its labels lie; None interpolates, which is exact for the levels
        of a variance-preserving, variance-exploding, EDM or flow process but not for their labels.
      max_step_size: [], in log SNR. Without a bound a step that begins at high noise, where x hardly changes, may pass
        over the part where it does, and the error estimate is wrong.
      method: a diffrax solver with an error estimate; diffrax.Dopri5() by default.
      max_steps: the largest number of steps from one level to the next.

    Raises:
      ImportError: without diffrax.
      ValueError: if levels are not a plan of at least two levels, alpha is 0 at one of them, a tolerance or
        max_step_size (not traced) is not positive, or max_steps < 1.

    >>> from diffusers_fn import oracles
    >>> from diffusers_fn.processes import edm
    >>> from diffusers_fn.sampling import sample
    >>> solver = adaptive(edm()(np.array([80.0, 0.002])), process=edm())
    >>> x = jnp.array([[80.0, -40.0]])
    >>> sample(None, oracles.gaussian(0.0, 0.5), solver, x).x0.round(3)
    Array([[ 0.5 , -0.25]], dtype=float32)
    """
    diffrax = _diffrax()
    check_plan(levels)
    check_num_levels(levels, 2)
    _check(levels, max_steps, rtol=rtol, atol=atol, max_step_size=max_step_size)
    num_levels = np.shape(levels.sigma)[0]
    start, end = neighbours(levels)
    xp = namespace(levels, max_step_size)
    length = (log_snr(end) - log_snr(start)).reshape(num_levels - 1, -1).max(axis=1)
    repeat_last = lambda a: xp.concatenate([a, a[-1:]])  # noqa: E731
    rows = AdaptiveRow(
        start=jax.tree.map(repeat_last, start),
        end=jax.tree.map(repeat_last, end),
        u=np.append(np.zeros(num_levels - 1), 1.0),
        max_step_size=repeat_last(max_step_size / length),
        rtol=namespace(rtol).broadcast_to(rtol, (num_levels,)),
        atol=namespace(atol).broadcast_to(atol, (num_levels,)),
    )
    step = _Adaptive(process, diffrax.Dopri5() if method is None else method, max_steps)
    return Solver(_init, step, rows, stochastic=False)


def _init(x: jax.Array, rows: AdaptiveRow) -> AdaptiveState:
    return AdaptiveState(x)


@dataclasses.dataclass(frozen=True)
class _Adaptive:
    """The step function, equal to another when its options are, so that equal solvers share one compilation."""

    process: Process | None
    method: Any
    max_steps: int

    def __call__(
        self, key: None, denoise: Denoiser, state: AdaptiveState, row: AdaptiveRow
    ) -> tuple[AdaptiveState, AdaptiveStep]:
        diffrax, x = _diffrax(), state.x

        def path(u: jax.Array) -> tuple[tuple[Array, Array], Level]:
            level = between(row.start, row.end, u, self.process)
            return (level.alpha, level.sigma), level

        def slope(u: jax.Array, x: jax.Array, args: Any) -> jax.Array:
            _, (d_alpha, d_sigma), level = jax.jvp(path, (u,), (jnp.ones_like(u),), has_aux=True)
            prediction = denoise(x, level)
            return expand(d_alpha, x) * prediction.x0.astype(x.dtype) + expand(d_sigma, x) * prediction.eps.astype(
                x.dtype
            )

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            self.method,
            t0=row.u,
            t1=jnp.ones_like(row.u),
            dt0=None,
            y0=x,
            stepsize_controller=diffrax.PIDController(row.rtol, row.atol, norm=_largest_rms, dtmax=row.max_step_size),
            max_steps=self.max_steps,
            throw=False,
        )
        arrived = solution.result == diffrax.RESULTS.successful
        reached = jnp.where(arrived, solution.ys[0], jnp.nan)
        prediction = denoise(reached, row.end)
        x_next = jnp.where(row.u < 1, reached, prediction.x0.astype(x.dtype))
        return AdaptiveState(x_next), AdaptiveStep(reached, row.end, prediction, x_next, solution.stats["num_steps"])


def _largest_rms(error: jax.Array) -> jax.Array:
    """The largest root mean square over the examples, with derivative 0 where it is 0, like diffrax's own norm."""
    mean_squares = jnp.mean(jnp.square(error.reshape(error.shape[0], -1)), axis=1)
    largest = jnp.max(mean_squares)
    return jnp.where(largest > 0, jnp.sqrt(jnp.where(largest > 0, largest, 1.0)), 0.0)


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "adaptive step sizes need diffrax, from the extra `adaptive`: pip install 'diffusers_fn[adaptive]'"
        ) from error
    return diffrax


def _check(levels: Level, max_steps: int, **tolerances: Any) -> None:
    alpha = concrete(levels.alpha)
    if alpha is not None and np.any(alpha == 0):
        raise ValueError("adaptive steps need a finite log SNR: start from a level with alpha > 0, near pure noise")
    for name, value in tolerances.items():
        readable = concrete(value)
        if np.shape(value) != () or (readable is not None and not readable > 0):
            raise ValueError(f"{name} must be one positive number; got {value}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1; got {max_steps}")
