"""Every built-in solver, on the levels of every process, for networks of every parameterization: one table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import PARAMETERIZATIONS

import diffusers_fn as dfn
from diffusers_fn import oracles, processes, solvers
from experiments.compare_solvers import SOLVERS

PROCESSES = {
    "vp": processes.vp(),
    "sub_vp": processes.sub_vp(),
    "ve": processes.ve(),
    "cosine": processes.cosine(),
    "flow": processes.flow(),
    "edm": processes.edm(),
}


def levels_of(process, num_levels=9):
    return processes.at_log_snr(process, np.linspace(-6.0, 5.0, num_levels))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_laws_of_a_solver(name):
    """Order of convergence, or the moments that a stochastic solver tends to; see `oracles.check_solver`."""
    entry = SOLVERS[name]
    order = entry.order and {"gaussian": entry.gaussian_order or entry.order, "mixture": entry.order}
    for process_name in ("vp", "flow", "edm"):
        process = PROCESSES[process_name]
        make = lambda levels, process=process: entry.make(levels, process)  # noqa: E731
        oracles.check_solver(make, order, processes={process_name: process})


@functools.partial(jax.jit, static_argnums=0)
def run(parameterization, solver, x):
    """The state at the last level; parameterization None is the exact denoiser itself."""
    exact = oracles.mixture([0.3, 0.7], [-0.8, 0.6], [0.4, 0.5], independent=True)

    def denoise(x, level, cond=None):
        prediction = exact(x, level)
        if parameterization is None:
            return prediction
        line = PARAMETERIZATIONS[parameterization]
        out = dfn.target(line, prediction.x0, prediction.eps, level)
        return dfn.to_prediction(line, out, x, level)

    key = jax.random.key(3) if solver.stochastic else None
    return dfn.sample(key, denoise, solver, x, final_denoise=False).x0


@pytest.mark.parametrize(
    "parameterization",
    [pytest.param(name, marks=() if name in ("epsilon", "v") else pytest.mark.long) for name in PARAMETERIZATIONS],
)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.usefixtures("x64")
def test_samples_are_those_of_the_exact_denoiser(name, parameterization):
    for process_name, process in PROCESSES.items():
        levels = levels_of(process)
        solver = SOLVERS[name].make(levels, process)
        start = jnp.array([[1.3, -0.2, 0.4], [-0.7, 1.9, 0.1]]) * np.hypot(levels.alpha[0], levels.sigma[0])
        wanted = run(None, solver, start)
        assert bool(jnp.all(jnp.isfinite(wanted)))
        # The 2 x 2 solve loses three digits of sixteen where alpha or sigma is small.
        np.testing.assert_allclose(
            run(parameterization, solver, start), wanted, rtol=1e-10, atol=1e-10, err_msg=process_name
        )


def shapes(solver):
    return jax.tree.structure(solver), tuple(np.shape(leaf) for leaf in jax.tree.leaves(solver))


def test_solvers_of_equal_shape_share_one_compilation():
    """Over solver, process, eta, guidance scale and key: a trace for each shape of a table, no more."""
    traces, wanted = [], set()

    @jax.jit
    def guided(key, solver, scale, x):
        traces.append(None)
        denoise = dfn.guidance.classifier_free(scale, null_cond=0)(oracles.gaussian(0.3, 0.5))
        bound = dfn.bind(denoise, jnp.zeros(x.shape[0], jnp.int32))
        return dfn.sample(key, bound, solver, x).x0

    x = jnp.ones((2, 3))
    for process in (PROCESSES["vp"], PROCESSES["flow"], PROCESSES["edm"]):
        levels = levels_of(process)
        plans = [entry.make(levels, process) for entry in SOLVERS.values()]
        plans += [solvers.ddim(levels, jnp.asarray(eta)) for eta in (0.0, 0.3, 1.0)]
        for seed, solver in enumerate(plans):
            wanted.add(shapes(solver))
            guided(jax.random.key(seed), jax.tree.map(jnp.float32, solver), 1.0 + seed, x)
    assert len(traces) == len(wanted)
    assert len(wanted) < len(SOLVERS) / 2


def test_padded_plans_share_one_compilation_over_numbers_of_steps():
    traces = []

    @jax.jit
    def padded(key, solver, length, x):
        traces.append(None)
        return dfn.sample(key, oracles.gaussian(0.3, 0.5), solver, x, scan=dfn.while_scan(length)).x0

    for num_levels in (10, 20, 50):
        for make in (solvers.ddim, solvers.euler, solvers.dpmpp_1):
            solver = make(levels_of(PROCESSES["vp"], num_levels))
            padded(None, jax.tree.map(jnp.float32, solvers.pad(solver, 50)), num_levels, jnp.ones((2, 3)))
    assert len(traces) == 1
