"""The density of a model's samples, by integrating its probability flow from the data to the noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_data, expand, namespace, working_dtype
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser, check_pure_noise
from diffusers_fn.levels import Level
from diffusers_fn.likelihood.traces import Trace, hutchinson
from diffusers_fn.processes import Process
from diffusers_fn.solvers.chord import on_chord
from diffusers_fn.solvers.plans import check_num_levels, check_plan, neighbours
from diffusers_fn.solvers.stages import interleave
from diffusers_fn.solvers.tableaus import RK4, Tableau, check_tableau

__all__ = ["LogProb", "Prior", "gaussian_prior", "log_prob", "standard_prior"]

Prior = Callable[[jax.Array, Level], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogProb:
    """A log density in nats.

    Attributes:
      log_prob: [B], summed over the entries of an example.
      standard_error: [B], that of log_prob over the probes of the trace; 0 for the exact trace, NaN for one probe.
      latent: [B, ...], the end point of the flow from x, at levels[0].
    """

    log_prob: jax.Array
    standard_error: jax.Array
    latent: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rows:
    """R rows, one per network evaluation.

    level: [R], the level of the evaluation, at scale x; scale: [R].
    alpha, sigma: [R], the differences of alpha and sigma over the step that the row belongs to.
    weights: [R, S], the weights of the last S slopes in the update of the state, the newest first.
    """

    level: Level
    scale: Any
    alpha: Any
    sigma: Any
    weights: Any


def log_prob(
    key: jax.Array | None,
    denoise: Denoiser,
    levels: Level,
    x: jax.Array,
    *,
    trace: Trace = hutchinson(),  # noqa: B008
    prior: Prior | None = None,
    tableau: Tableau = RK4,
    process: Process | None = None,
) -> LogProb:
    """Returns the log density [B] of x at the last level, by integrating the probability flow up to the prior.

        dx = x0_hat d(alpha) + eps_hat d(sigma),   log p(x) = log prior(x_T) + integral of tr(d dx / dx),

    both integrated from levels[-1] to levels[0], in one scan with one network evaluation per row. Song et al.,
    "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, section 4.3 and appendix D.2.

    It is the density at the last *noisy* level, of data with noise of sigma = levels.sigma[-1], not of clean data. For
    discrete data such as pixels see `uniform_dequantize` and `noise_dequantize`.

    The default prior is N(0, sigma^2) at levels[0], from which samplers start. The marginal of the data there has the
    mean alpha mean and the variance alpha^2 std^2 + sigma^2, so the density of an exact denoiser differs from that of
    the data, by about z alpha mean / sigma per dimension with z standard normal: 0 if alpha = 0 there (`flow`); for a
    mean of 0.5, 0.003 z with the linear schedule and `vp`, 0.01 z with `ve` and sigma_max = 50. `gaussian_prior(mean,
    std)` removes the difference for Gaussian data.

    Args:
      key: for the random vectors of the trace: one key, or [B] keys, one per example; None for the exact trace.
      denoise: the denoiser, its conditioning bound, without clipping or thresholding (these have no flow).
      levels: Level[N], N >= 2, the plan of a sampler, noisiest first; alpha = 0 at the first level is allowed.
      x: [B, ...] data at the last level.
      trace: hutchinson(num_probes) or exact_trace().
      prior: (x, level) -> [B], the log density in nats at levels[0]; None for N(0, sigma^2).
      tableau: the Runge-Kutta method: RK4 (4 (N - 1) network evaluations), HEUN (2 (N - 1)), ...
      process: the process of the levels, on which inner stages lie; None interpolates between neighbouring levels, see
        `processes.between`.

    Raises:
      ValueError: if levels is not a plan of at least two levels, x is not of floating type, the key is missing, or
        alpha = 0 at the first level and x0 does not follow from the network's output there.

    >>> from diffusers_fn import grids, oracles
    >>> from diffusers_fn.likelihood import exact_trace
    >>> levels, std = grids.karras(20), jnp.sqrt(0.5**2 + 0.002**2)
    >>> found = log_prob(None, oracles.gaussian(0.0, 0.5), levels, jnp.full((1, 2), 0.25), trace=exact_trace())
    >>> wanted = jax.scipy.stats.norm.logpdf(0.25, 0.0, std) * 2
    >>> bool(abs(found.log_prob[0] - wanted) < 2e-3)
    True
    """
    check_data(x=x)
    check_plan(levels)
    check_num_levels(levels, 2)
    check_tableau(tableau)
    x = jnp.asarray(x, working_dtype(x))
    check_pure_noise(denoise, levels, x)
    vectors = trace.draw(key, x)
    rows = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), _upwards(levels, tableau, process))

    def slope(x: jax.Array, row: _Rows) -> tuple[jax.Array, jax.Array]:
        """The change of x over the step at the stage of the row, and the trace of its Jacobian."""

        def velocity(x: jax.Array) -> jax.Array:
            prediction = denoise(expand(row.scale, x) * x, row.level)
            return expand(row.alpha, x) * prediction.x0 + expand(row.sigma, x) * prediction.eps

        change, jvp = jax.linearize(velocity, x)
        return change, trace.estimate(jvp, vectors, x)

    def body(carry: Any, row: _Rows) -> tuple[Any, None]:
        state, slopes = carry
        slopes = (slope(state[0], row), *slopes[:-1])
        for weight, kept in zip(row.weights, slopes):
            state = jax.tree.map(lambda a, d, weight=weight: a + weight * d, state, kept)
        return (state, slopes), None

    first = jax.tree.map(lambda a: a[0], rows)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(slope, x, first))
    start = ((x, zero[1]), (zero,) * len(tableau.nodes))
    ((latent, traces), _), _ = jax.lax.scan(body, start, rows)

    top = jax.tree.map(lambda a: jnp.asarray(a[0], x.dtype), levels)
    top_log_prob = (standard_prior if prior is None else prior)(latent, top)
    return LogProb(top_log_prob + jnp.mean(traces, axis=0), _standard_error(traces, trace.exact), latent)


def standard_prior(x: jax.Array, level: Level) -> jax.Array:
    """Returns log N(x; 0, sigma^2) [B] in nats, the log density of the noise that samplers start from.

    Args:
      x: [B, ...].
      level: S = [], the first level of the plan.

    >>> f"{standard_prior(jnp.zeros((1, 2)), Level(0.0, 1.0, 0.0))[0]:.4f}"
    '-1.8379'
    """
    return _normal_log_density(x, 0.0, level.sigma**2)


def gaussian_prior(mean: ArrayLike = 0.0, std: ArrayLike = 1.0) -> Prior:
    """Returns the prior N(alpha mean, alpha^2 std^2 + sigma^2), the marginal of N(mean, std^2) data at the first level.

    Args:
      mean: a number, or an array with the shape of one example.
      std: as mean.

    >>> f"{gaussian_prior(0.0, 1.0)(jnp.zeros((1, 2)), Level(0.6, 0.8, 0.0))[0]:.4f}"
    '-1.8379'
    """
    mean, std = jnp.asarray(mean), jnp.asarray(std)

    def prior(x: jax.Array, level: Level) -> jax.Array:
        batched = lambda a: a if a.ndim == 0 else a[None]  # noqa: E731
        return _normal_log_density(x, level.alpha * batched(mean), (level.alpha * batched(std)) ** 2 + level.sigma**2)

    return prior


def _upwards(levels: Level, tableau: Tableau, process: Process | None) -> _Rows:
    """The rows of a Runge-Kutta method along the chords of a plan, from its last level to its first.

    Stage i is x_i = x + sum_k W_ik d_k, where W holds the stages and then the weights of the tableau; the state changes
    between two stages by the differences of W.
    """
    noisier, cleaner = jax.tree.map(lambda a: a[::-1], neighbours(levels))  # each step ends at the noisier level
    visited, scales = zip(*(on_chord(noisier, cleaner, 1 - node, process) for node in tableau.nodes))
    num, ones = len(tableau.nodes), np.ones(noisier.sigma.shape)
    table = np.zeros((num + 1, num))
    for i, stage in enumerate([*tableau.stages, tableau.weights]):
        table[i, : len(stage)] = stage
    steps = np.diff(table, axis=0)  # [stage, slope]
    weights = np.array([[steps[i, i - lag] if lag <= i else 0.0 for lag in range(num)] for i in range(num)])
    return _Rows(
        level=jax.tree.map(lambda *a: interleave(*a), *visited),
        scale=interleave(*(scale * ones for scale in scales)),
        alpha=namespace(levels).repeat(noisier.alpha - cleaner.alpha, num),
        sigma=namespace(levels).repeat(noisier.sigma - cleaner.sigma, num),
        weights=np.tile(weights, (ones.size, 1)),
    )


def _normal_log_density(x: jax.Array, mean: Any, var: Any) -> jax.Array:
    log_density = -0.5 * ((x - mean) ** 2 / var + jnp.log(2.0 * jnp.pi * var))
    return jnp.sum(log_density.reshape(x.shape[0], -1), axis=1)


def _standard_error(traces: jax.Array, exact: bool) -> jax.Array:
    num = traces.shape[0]
    if exact:
        return jnp.zeros_like(traces[0])
    if num == 1:
        return jnp.full_like(traces[0], jnp.nan)
    return jnp.std(jax.lax.stop_gradient(traces), axis=0, ddof=1) / np.sqrt(num)
