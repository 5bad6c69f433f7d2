"""A solver of your own: the two-step Adams-Bashforth method on dx = x0_hat d(alpha) + eps_hat d(sigma).

    python docs/skeletons/solver.py

With steps of length h = d(sigma), slopes m = dx / d(sigma) and the ratio r of a step's length to the last one's, the
method is

    x' = x + h ((1 + r / 2) m_1 - (r / 2) m_2),      and Euler's x' = x + h m_1 in the first step.

Inside this repository this file is `diffusers_fn/solvers/NAME.py`, exported by `solvers/__init__.py`, and one line of
SOLVERS in `diffusers_fn/from_config/samplers.py`:

    "adams_bashforth": levels_only(solvers.adams_bashforth, order=2),

With its order the solver joins tests/solvers/test_all_solvers.py and the figure of experiments/compare_solvers.py.
"""

import numpy as np

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers
from diffusers_fn.from_config import tables


def adams_bashforth(levels: dfn.Level) -> dfn.Solver:
    """Returns the two-step Adams-Bashforth method for a plan Level[N] of variance-exploding levels (alpha = 1)."""
    solvers.check_plan(levels)  # ValueError unless the levels are noisy and descend
    # A table has one row per step; columns are arrays [N - 1], computed in NumPy float64.
    h = np.diff(levels.sigma)
    r = np.concatenate([[0.0], h[1:] / h[:-1]])  # 0: the first step is Euler's
    # Each row keeps m = x0 * x0_hat + eps * eps_hat; along alpha = 1 the slope dx / d(sigma) is eps_hat.
    # The new state is x' = sum_j x[j] x_j + sum_k m[k] m_k, newest first.
    return solvers.linear_solver(levels, x=[1.0], x0=0.0, eps=1.0, m=[h * (1 + r / 2), -h * r / 2])


if __name__ == "__main__":
    # The laws of a deterministic solver: its order of convergence on Gaussians and mixtures, traced as every other.
    oracles.check_solver(adams_bashforth, 2, processes={"edm": dfn.processes.edm()})
    print("order 2 holds")

    # Sampling: any denoiser, here the exact one of N(0.3, 0.5^2).
    x = 80.0 * np.random.default_rng(0).standard_normal((4000, 1)).astype(np.float32)
    x0 = dfn.sample(None, oracles.gaussian(0.3, 0.5), adams_bashforth(grids.karras(40)), x).x0
    print(f"mean {float(x0.mean()):.2f}, standard deviation {float(x0.std()):.2f}")

    # By name in a config, without editing this repository.
    mine = {"adams_bashforth": tables.levels_only(adams_bashforth)}
    config = dfn.customise(
        dfn.default_config(),
        noise_schedule={"process": "edm", "time_label": "log_sigma"},
        loss={"time_sampler": "log_normal"},
        parameterization="edm",
        sampler={"name": "adams_bashforth", "skip_type": "karras"},
    )
    dfn.build(config, tables.Tables(solvers={**tables.SOLVERS, **mine}))
    print("built from a config")
