"""Samplers of this library, and scans written by hand for the same steps."""

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

BY_NAME = {"ddim": solvers.ddim, "euler": solvers.euler, "dpmpp_2m": solvers.dpmpp_2m}


# Solvers as tables against their products written out, with a denoiser of two products.


def denoise(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
    """A denoiser of two products."""
    return Prediction(0.9 * x, 0.1 * x)


def by_table(solver: Solver, x: jax.Array) -> jax.Array:
    """The sampler."""
    return dfn.sample(None, denoise, solver, x).x0


def by_hand(solver: Solver, x: jax.Array) -> jax.Array:
    """The products of a row with one state and at most two kept predictions, written out."""
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
    """x' = alpha' x0_hat + sigma' eps_hat and nothing else."""

    def body(x: jax.Array, row: Any) -> tuple[jax.Array, None]:
        prediction = denoise(x, solver.rows.level)
        return row[0] * prediction.x0 + row[1] * prediction.eps, None

    return jax.lax.scan(body, x, (solver.rows.x0, solver.rows.eps))[0]


def products(shape: Sequence[int], steps: int, solver: str, way: str) -> Work:
    """Runs a solver's rows in one of three ways: table, hand or shortest."""
    levels = grids.uniform_log_snr(schedule(), steps)
    plan = jax.tree.map(jnp.float32, BY_NAME[solver](levels))
    return _repeat({"table": by_table, "hand": by_hand, "shortest": shortest_ddim}[way], plan, start(shape))


# Sampling with the network 0.1 x, which predicts noise: what peers can do too.


def deterministic(shape: Sequence[int], steps: int, by_hand: bool = False, constant: bool = False) -> Work:
    """DDIM, with the sampler or by a scan of its formula.

    Args:
      shape: of the samples.
      steps: how many.
      by_hand: the scan.
      constant: the solver is known to the compiled sampler, not an argument of it.
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
    shape: Sequence[int], steps: int, each: bool = False, generator: str = "threefry2x32", by_hand: bool = False
) -> Work:
    """Ancestral sampling, with the sampler or by a scan of its formula that makes the keys of its steps beforehand.

    Args:
      shape: of the samples.
      steps: how many.
      each: one key an example, not one for the batch.
      generator: of the keys.
      by_hand: the scan.
    """
    levels, key = grids.leading(schedule(), steps), jax.random.key(0, impl=generator)
    solver = jax.tree.map(jnp.float32, solvers.ancestral(levels))
    if not by_hand:
        keys = jax.random.split(key, shape[0]) if each else key
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


# Sampling with a network.


def network(folder: str, shape: Sequence[int], steps: int) -> Work:
    """DDIM with the network of a folder."""
    module, params = dfn.pretrained.load(folder)
    apply: Any = lambda params, x, t, cond: module.apply({"params": params}, x, t, cond)  # noqa: E731

    def run(given: Any, x: jax.Array) -> jax.Array:
        params, solver = given
        return dfn.sample(None, dfn.make_denoiser(apply, params, dfn.parameterizations.epsilon), solver, x).x0

    solver = jax.tree.map(jnp.float32, solvers.ddim(grids.leading(schedule(), steps)))
    return _repeat(run, (params, solver), start(shape))


def forwards(folder: str, shape: Sequence[int], steps: int) -> Work:
    """So many evaluations of the network of a folder, one after another: what sampling cannot do without."""
    module, params = dfn.pretrained.load(folder)
    apply = jax.jit(lambda params, x, t: module.apply({"params": params}, x, t))
    x, t = start(shape), jnp.float32(500)

    def run() -> None:
        for _ in range(steps):
            apply(params, x, t).block_until_ready()

    return Work(run=run)


def schedule() -> dfn.NoiseSchedule:
    """The table of all samplers here."""
    return dfn.make_noise_schedule(dfn.linear_betas(1000))


def start(shape: Sequence[int]) -> jax.Array:
    """The noise that all samplers start from."""
    return jnp.asarray(inputs.draw(shape).x)


def tenth() -> dfn.Denoiser:
    """The denoiser of the network 0.1 x."""
    return dfn.make_denoiser(lambda params, x, t, cond: 0.1 * x, None, dfn.parameterizations.epsilon)


def _repeat(function: Callable[..., jax.Array], given: Any, x: jax.Array) -> Work:
    compiled = jax.jit(function)
    return Work(
        run=lambda: compiled(given, x).block_until_ready(),
        output=lambda: np.asarray(compiled(given, x)),
    )
