"""The density of a model's samples, by the probability flow taken from the data to the noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_data, expand, namespace, working_dtype
from diffusers_fn.denoisers import Denoiser, check_pure_noise
from diffusers_fn.levels import Level
from diffusers_fn.likelihood.traces import Trace, hutchinson
from diffusers_fn.processes import Process
from diffusers_fn.solvers.chord import on_chord
from diffusers_fn.solvers.plans import check_num_levels, check_plan, neighbours
from diffusers_fn.solvers.stages import interleave
from diffusers_fn.solvers.tableaus import RK4, Tableau, check_tableau

Prior = Callable[[jax.Array, Level], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogProb:
    """A log density in nats, and what it came from.

    Attributes:
      log_prob: [B], summed over an example's entries.
      standard_error: [B], of log_prob over the probes of the trace: 0 for the exact trace, NaN with one probe.
      latent: [B, ...], where the flow takes x, at levels[0].
    """

    log_prob: jax.Array
    standard_error: jax.Array
    latent: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rows:
    """One row a network evaluation; R rows.

    level: [R], where the network is asked; scale: [R], what it is given is scale x.
    alpha, sigma: [R], how far the hop of the row moves.
    weights: [R, S], how the state moves on by the S last slopes, the newest first.
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
    """Returns the log density [B] of x at the last level under the model: prior, carried down by the flow.

        dx = x0_hat d(alpha) + eps_hat d(sigma),   log p(x) = log prior(x_T) + integral of tr(d dx / dx),

    both integrated upwards from levels[-1] to levels[0], in one scan with one network evaluation a row. Song et al.,
    "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, section 4.3 and appendix D.2.

    It is the density at the last *noisy* level: that of data with noise of sigma = levels.sigma[-1], not of clean data.
    For data of a few grey levels see `uniform_dequantize` and `noise_dequantize`.

    The prior is what the samplers start from, N(0, sigma^2) at levels[0]. Data noised to that level have the mean
    alpha mean and the variance alpha^2 std^2 + sigma^2, so an exact denoiser's density is not quite the data's: they
    differ by about z alpha mean / sigma a dimension, z standard normal, half the square of that on average over the
    data. That is nothing at alpha = 0 (`flow`); for a mean of 0.5 it is 0.003 z for the linear table and `vp`, 0.01 z
    for `ve` with sigma_max = 50. `gaussian_prior(mean, std)` knows both moments.

    Args:
      key: for the random vectors of the trace: one key, or [B] keys, each for an example of its own. None for the
        exact trace.
      denoise: the denoiser, its conditioning bound, without clipping or thresholding (they have no flow).
      levels: Level[N], N >= 2, the plan of a sampler, noisiest first; alpha = 0 at the first is allowed.
      x: [B, ...] data at the last level.
      trace: hutchinson(num_probes) or exact_trace().
      prior: (x, level) -> [B], the log density at levels[0]; None for N(0, sigma^2).
      tableau: the Runge-Kutta method: RK4 (4 (N - 1) evaluations), HEUN (2 (N - 1)), ...
      process: the process of the levels, where inner stages get their level and label; None interpolates between the
        neighbours, see `processes.between`.

    Raises:
      ValueError: if levels are no plan of at least two levels, x is not of floating type, the key is missing, or
        alpha = 0 at the first level where the network's parameterization does not tell x0.

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
        """How far the hop moves x, and the trace of that, at the row's stage."""

        def velocity(x: jax.Array) -> jax.Array:
            prediction = denoise(expand(row.scale, x) * x, row.level)
            return expand(row.alpha, x) * prediction.x0 + expand(row.sigma, x) * prediction.eps

        moved, jvp = jax.linearize(velocity, x)
        return moved, trace.estimate(jvp, vectors, x)

    def body(carry: Any, row: _Rows) -> tuple[Any, None]:
        state, slopes = carry
        slopes = (slope(state[0], row), *slopes[:-1])
        for weight, kept in zip(row.weights, slopes):
            state = jax.tree.map(lambda a, d, weight=weight: a + weight * d, state, kept)
        return (state, slopes), None

    first = jax.tree.map(lambda a: a[0], rows)
    still = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(slope, x, first))
    start = ((x, still[1]), (still,) * len(tableau.nodes))
    ((latent, traces), _), _ = jax.lax.scan(body, start, rows)

    top = jax.tree.map(lambda a: jnp.asarray(a[0], x.dtype), levels)
    top_log_prob = (standard_prior if prior is None else prior)(latent, top)
    return LogProb(top_log_prob + jnp.mean(traces, axis=0), _standard_error(traces, trace.exact), latent)


def standard_prior(x: jax.Array, level: Level) -> jax.Array:
    """Returns log N(x; 0, sigma^2) [B] in nats, the density of a sampler's start.

    >>> f"{standard_prior(jnp.zeros((1, 2)), Level(0.0, 1.0, 0.0))[0]:.4f}"
    '-1.8379'
    """
    return _normal_log_density(x, 0.0, level.sigma**2)


def gaussian_prior(mean: Any = 0.0, std: Any = 1.0) -> Prior:
    """Returns the prior N(alpha mean, alpha^2 std^2 + sigma^2): data of that mean and std at the first level.

    Args:
      mean: a number, or an array of an example's shape.
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

    Stage i is at x_i = x + sum_k W_ik d_k, W the tableau's stages and then its weights; so the state goes from one
    stage to the next by the differences of W.
    """
    frm, to = jax.tree.map(lambda a: a[::-1], neighbours(levels))  # each hop goes from `to` up to `frm`
    visited, scales = zip(*(on_chord(frm, to, 1 - node, process) for node in tableau.nodes))
    num, ones = len(tableau.nodes), np.ones(frm.sigma.shape)
    table = np.zeros((num + 1, num))
    for i, stage in enumerate([*tableau.stages, tableau.weights]):
        table[i, : len(stage)] = stage
    moved = np.diff(table, axis=0)  # [stage, slope]
    weights = np.array([[moved[i, i - lag] if lag <= i else 0.0 for lag in range(num)] for i in range(num)])
    return _Rows(
        level=jax.tree.map(lambda *a: interleave(*a), *visited),
        scale=interleave(*(scale * ones for scale in scales)),
        alpha=namespace(levels).repeat(frm.alpha - to.alpha, num),
        sigma=namespace(levels).repeat(frm.sigma - to.sigma, num),
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
