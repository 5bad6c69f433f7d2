"""Samplers of this library, and hand-written scans over the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffusers_fn as dfn
from diffusers_fn import Level, Prediction, Solver, grids, solvers
from experiments.benchmarks import inputs
from experiments.benchmarks.work import Work

__all__ = [
    "BY_NAME",
    "by_hand",
    "by_table",
    "denoise",
    "deterministic",
    "forwards",
    "network",
    "noisy",
    "products",
    "schedule",
    "shortest_ddim",
    "start",
    "tenth",
]

BY_NAME = {"ddim": solvers.ddim, "euler": solvers.euler, "dpmpp_2m": solvers.dpmpp_2m}


# The sampler against the same products written out; the denoiser is two products.


def denoise(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
    """Returns 0.9 x and 0.1 x as the prediction."""
    return Prediction(0.9 * x, 0.1 * x)


def by_table(solver: Solver, x: jax.Array) -> jax.Array:
    """Returns the sample that `dfn.sample` computes."""
    return dfn.sample(None, denoise, solver, x).x0


def by_hand(solver: Solver, x: jax.Array) -> jax.Array:
    """Returns the same sample by the products of each row written out, for one or two kept predictions."""
    rows = solver.rows
    columns = (rows.x[:, 0], rows.x0, rows.eps, rows.m)

    def one(x: jax.Array, row: Any) -> tuple[jax.Array, None]:
        a, b, c, m = row
        prediction = denoise(x, rows.level)
        return a * x + (m[0] * b) * prediction.x0 + (m[0] * c) * prediction.eps, None

    def two(state: Any, row: Any) -> tuple[Any, None]:
        (x, before), (a, b, c, m) = state, row
        prediction = denoise(x, rows.level)
        kept = b * prediction.x0 + c * prediction.eps
        return (a * x + m[0] * kept + m[1] * before, kept), None

    if rows.m.shape[1] == 1:
        return jax.lax.scan(one, x, columns)[0]
    return jax.lax.scan(two, (x, jnp.zeros_like(x)), columns)[0][0]


def shortest_ddim(solver: Solver, x: jax.Array) -> jax.Array:
    """Returns the same sample by x' = alpha' x0_hat + sigma' eps_hat alone."""

    def body(x: jax.Array, row: Any) -> tuple[jax.Array, None]:
        prediction = denoise(x, solver.rows.level)
        return row[0] * prediction.x0 + row[1] * prediction.eps, None

    return jax.lax.scan(body, x, (solver.rows.x0, solver.rows.eps))[0]


def products(shape: Sequence[int], steps: int, solver: str, method: str) -> Work:
    """Samples by one of three methods: table, hand or shortest."""
    levels = grids.uniform_log_snr(schedule(), steps)
    plan = jax.tree.map(jnp.float32, BY_NAME[solver](levels))
    return _repeat({"table": by_table, "hand": by_hand, "shortest": shortest_ddim}[method], plan, start(shape))


# Sampling with the network 0.1 x, which predicts noise; the peers use it too.


def deterministic(shape: Sequence[int], steps: int, by_hand: bool = False, constant: bool = False) -> Work:
    """DDIM, by the sampler or by a hand-written scan.

    Args:
      shape: shape of the samples.
      steps: number of sampler steps.
      by_hand: whether the hand-written scan runs.
      constant: whether the solver is a constant of the compiled sampler instead of an argument.
    """
    levels = grids.leading(schedule(), steps)
    if not by_hand:
        known = solvers.ddim(levels)
        run = lambda solver, x: dfn.sample(None, tenth(), known if constant else solver, x).x0  # noqa: E731
        return _repeat(run, jax.tree.map(jnp.float32, known), start(shape))

    def hand(columns: Any, x: jax.Array) -> jax.Array:
        def body(x: jax.Array, row: Any) -> tuple[jax.Array, None]:
            alpha, sigma, next_alpha, next_sigma = row
            eps = 0.1 * x
            return next_alpha * (x - sigma * eps) / alpha + next_sigma * eps, None

        return jax.lax.scan(body, x, columns)[0]

    columns = (levels.alpha, levels.sigma, np.append(levels.alpha[1:], 1.0), np.append(levels.sigma[1:], 0.0))
    return _repeat(hand, jax.tree.map(jnp.float32, columns), start(shape))


def noisy(
    shape: Sequence[int],
    steps: int,
    key_per_example: bool = False,
    generator: str = "threefry2x32",
    by_hand: bool = False,
) -> Work:
    """Ancestral sampling, by the sampler or by a hand-written scan that derives the keys of all steps beforehand.

    Args:
      shape: shape of the samples.
      steps: number of sampler steps.
      key_per_example: whether each example has a key of its own instead of one key for the batch.
      generator: JAX's name of the random number generator.
      by_hand: whether the hand-written scan runs.
    """
    levels, key = grids.leading(schedule(), steps), jax.random.key(0, impl=generator)
    solver = jax.tree.map(jnp.float32, solvers.ancestral(levels))
    if not by_hand:
        keys = jax.random.split(key, shape[0]) if key_per_example else key
        run = lambda given, x: dfn.sample(given[0], tenth(), given[1], x).x0  # noqa: E731
        return _repeat(run, (keys, solver), start(shape))

    def hand(given: Any, x: jax.Array) -> jax.Array:
        key, columns = given
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(steps)[::-1])

        def body(x: jax.Array, row: Any) -> tuple[jax.Array, None]:
            key, alpha, sigma, coef_x0, coef_x, std = row
            x0 = (x - sigma * (0.1 * x)) / alpha
            return coef_x0 * x0 + coef_x * x + std * jax.random.normal(key, x.shape), None

        return jax.lax.scan(body, x, (keys, *columns))[0]

    rows = solver.rows
    columns = (rows.level.alpha, rows.level.sigma, rows.x0, rows.x[:, 0], rows.noise)
    return _repeat(hand, (key, columns), start(shape))


# Sampling with a real network.


def network(folder: str, shape: Sequence[int], steps: int) -> Work:
    """DDIM with the network saved in a folder."""
    module, params = dfn.pretrained.load(folder)
    apply: Any = lambda params, x, t, cond: module.apply({"params": params}, x, t, cond)  # noqa: E731

    def run(given: Any, x: jax.Array) -> jax.Array:
        params, solver = given
        return dfn.sample(None, dfn.make_denoiser(apply, params, dfn.parameterizations.epsilon), solver, x).x0

    solver = jax.tree.map(jnp.float32, solvers.ddim(grids.leading(schedule(), steps)))
    return _repeat(run, (params, solver), start(shape))


def forwards(folder: str, shape: Sequence[int], steps: int) -> Work:
    """`steps` evaluations of the network saved in a folder, one after another: the least that sampling can cost."""
    module, params = dfn.pretrained.load(folder)
    apply = jax.jit(lambda params, x, t: module.apply({"params": params}, x, t))
    x, t = start(shape), jnp.float32(500)

    def run() -> None:
        for _ in range(steps):
            apply(params, x, t).block_until_ready()

    return Work(run=run)


def schedule() -> dfn.NoiseSchedule:
    """Returns the noise schedule of all samplers in this file."""
    return dfn.make_noise_schedule(dfn.linear_betas(1000))


def start(shape: Sequence[int]) -> jax.Array:
    """Returns the noise that all samplers start from."""
    return jnp.asarray(inputs.draw(shape).x)


def tenth() -> dfn.Denoiser:
    """Returns the denoiser whose network is 0.1 x."""
    return dfn.make_denoiser(lambda params, x, t, cond: 0.1 * x, None, dfn.parameterizations.epsilon)


def _repeat(function: Callable[..., jax.Array], given: Any, x: jax.Array) -> Work:
    compiled = jax.jit(function)
    return Work(
        run=lambda: compiled(given, x).block_until_ready(),
        output=lambda: np.asarray(compiled(given, x)),
    )
