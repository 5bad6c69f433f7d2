"""What a sampler costs beside a scan written by hand for it, with a denoiser that costs next to nothing.

    python -m experiments.overhead

Prints, for `--steps` rows on [4, 32, 32, 3], the median of interleaved runs in milliseconds and the median ratio to the
hand-written scan: of the same products (what the row says), and for DDIM also of the shortest form of its step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import diffusers_fn as dfn
from diffusers_fn import Level, Prediction, Solver, grids, solvers


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


def measure(num_steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """Returns {solver: {"ms", "ratio", ...}}; the candidates run in turn, so that a slow machine slows all."""
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    levels = grids.uniform_log_snr(schedule, num_steps)
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    figures = {}
    for name, make in {"ddim": solvers.ddim, "euler": solvers.euler, "dpmpp_2m": solvers.dpmpp_2m}.items():
        solver = jax.tree.map(jnp.float32, make(levels))
        candidates: dict[str, Callable[..., jax.Array]] = {"table": by_table, "hand": by_hand}
        if name == "ddim":
            candidates["shortest"] = shortest_ddim
        compiled = {key: jax.jit(function) for key, function in candidates.items()}
        wanted = compiled["table"](solver, x)
        for function in compiled.values():
            np.testing.assert_allclose(function(solver, x), wanted, rtol=1e-3, atol=1e-3)
        seconds: dict[str, list[float]] = {key: [] for key in compiled}
        for _ in range(repeats):
            for key, function in compiled.items():
                begin = time.perf_counter()
                function(solver, x).block_until_ready()
                seconds[key].append(time.perf_counter() - begin)
        table = np.array(seconds["table"])
        figures[name] = {"ms": 1e3 * float(np.median(table))}
        figures[name] |= {key: float(np.median(table / seconds[key])) for key in compiled if key != "table"}
    return figures


def main(_: list[str]) -> None:
    """Measures and prints."""
    print(f"{'solver':10}{'ms':>8}{'/ hand':>10}{'/ shortest':>12}")
    for name, figure in measure(flags.FLAGS.steps, flags.FLAGS.repeats).items():
        shortest = f"{figure['shortest']:12.2f}" if "shortest" in figure else ""
        print(f"{name:10}{figure['ms']:8.2f}{figure['hand']:10.2f}{shortest}")


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 1000, "Rows of the plan.", lower_bound=2)
    flags.DEFINE_integer("repeats", 60, "Interleaved runs.", lower_bound=1)
    app.run(main)
