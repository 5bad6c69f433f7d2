"""A solver of your own: the two-step Adams-Bashforth method.

    python docs/skeletons/solver.py

The probability flow is d(x / sigma) = x0_hat du with u = alpha / sigma. With h = u' - u and c = h / (2 h_before) the
method is

    x' = (sigma' / sigma) x + sigma' h [(1 + c) m_1 - c m_2],      m = x0_hat.

Inside this repository the function is a file `diffusers_fn/solvers/NAME.py`, exported by `solvers/__init__.py`, with
one line in the table SOLVERS of `diffusers_fn/from_config/samplers.py`:

    "adams_2": levels_only(solvers.adams_2, order=2),

With its order the solver joins tests/solvers/test_all_solvers.py and the figure of experiments/compare_solvers.py.
"""

import numpy as np

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers
from diffusers_fn.from_config import tables


def adams_2(levels: dfn.Level) -> dfn.Solver:
    """Returns the two-step Adams-Bashforth method on a plan Level[N], N >= 2."""
    # 1. Check the plan before tracing.
    solvers.check_plan(levels)  # noisy levels in descending order
    solvers.check_num_levels(levels, 2)
    # 2. The symbols of the formula as vectors over the N - 1 steps, in NumPy float64.
    start, end = solvers.neighbours(levels)
    h = np.diff(levels.alpha / levels.sigma)
    c = np.concatenate([[0.0], 0.5 * h[1:] / h[:-1]])  # the first step has no m_2
    # 3. One column per symbol. Each row keeps m = x0 * x0_hat + eps * eps_hat, and its new state is
    #    x' = sum_j x[j] x_j + sum_k m[k] m_k, newest first; the final denoise is added as the last row.
    return solvers.linear_solver(
        levels, x=[end.sigma / start.sigma], x0=1.0, eps=0.0, m=[end.sigma * h * (1.0 + c), -end.sigma * h * c]
    )


if __name__ == "__main__":
    # The laws of a deterministic solver: its order on VP, flow and EDM levels, for Gaussian and mixture data.
    oracles.check_solver(adams_2, order=2)
    print("order 2 holds")

    # Sampling with any denoiser, here the exact one of N(0.3, 0.5^2).
    x = 80.0 * np.random.default_rng(0).standard_normal((4000, 1)).astype(np.float32)
    x0 = dfn.sample(None, oracles.gaussian(0.3, 0.5), adams_2(grids.karras(40)), x).x0
    print(f"mean {float(x0.mean()):.2f}, standard deviation {float(x0.std()):.2f}")

    # By name in a config, without editing this repository.
    mine = {"adams_2": tables.levels_only(adams_2)}
    config = dfn.customise(dfn.default_config(), sampler={"name": "adams_2"})
    dfn.build(config, tables.Tables(solvers={**tables.SOLVERS, **mine}))
    print("built from a config")
