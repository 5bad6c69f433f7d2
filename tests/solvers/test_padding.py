"""A traced number of steps: padded tables and the scan that skips what pads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers

DENOISE = oracles.gaussian(0.3, 0.5)
MAKE = {
    "ddim": solvers.ddim,
    "ancestral": solvers.ancestral,
    "heun": solvers.heun,
    "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
    "unipc": lambda levels: solvers.unipc(levels, 2),
}


@pytest.fixture(scope="module")
def start():
    return 20.0 * jax.random.normal(jax.random.key(0), (4, 3))


def levels_of(n):
    return grids.karras(n, 0.02, 20.0)


def keys(solver, batched):
    key = jax.random.key(5)
    return (jax.random.split(key, 4) if batched else key) if solver.stochastic else None


@pytest.mark.long
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_one_program_serves_every_number_of_steps(name, batched, start):
    """Padding changes no sample, in the scan and in the while loop, and compiles nothing new."""
    traces = []

    @jax.jit
    def run(key, solver, x, length):
        traces.append(None)
        whole = dfn.sample(key, DENOISE, solver, x).x0
        skipping = dfn.sample(key, DENOISE, solver, x, scan=dfn.while_scan(length)).x0
        left = dfn.sample(key, DENOISE, solver, x, scan=dfn.while_scan(length - 1), final_denoise=False).x0
        return whole, skipping, left

    for n in (5, 8, 9):
        solver = MAKE[name](levels_of(n))
        key, own = keys(solver, batched), solver.rows.x0.shape[0]
        whole, skipping, left = run(key, solvers.pad(solver, 17), start, own)
        wanted = dfn.sample(key, DENOISE, solver, start).x0
        np.testing.assert_allclose(whole, wanted, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(skipping, wanted, rtol=2e-6, atol=2e-6)
        wanted = dfn.sample(key, DENOISE, solver, start, final_denoise=False).x0
        np.testing.assert_allclose(left, wanted, rtol=2e-6, atol=2e-6)
    assert len(traces) == 1


def test_the_while_loop_evaluates_real_rows_only(start):
    calls = []

    def counted(x, level, cond=None):
        jax.debug.callback(lambda: calls.append(None))
        return DENOISE(x, level)

    solver = solvers.pad(solvers.ddim(levels_of(5)), 12)
    for scan, wanted in ((dfn.while_scan(jnp.array(5)), 5), (jax.lax.scan, 12)):
        calls.clear()
        jax.block_until_ready(dfn.sample(None, counted, solver, start, scan=scan).x0)
        jax.effects_barrier()
        assert len(calls) == wanted


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_length_of_any_integer_type_is_that_many_rows(start, dtype):
    solver = solvers.pad(solvers.ddim(levels_of(5)), 200)  # more rows than int8 holds
    run = jax.jit(lambda n, x: dfn.sample(None, DENOISE, solver, x, scan=dfn.while_scan(n)).x0)
    np.testing.assert_allclose(run(dtype(5), start), run(np.int32(5), start), rtol=1e-6)


def test_the_trace_of_a_padded_run_ends_with_the_real_rows(start):
    emit = lambda step: step.x  # noqa: E731
    wanted = dfn.sample(None, DENOISE, solvers.ddim(levels_of(5)), start, emit=emit).trace
    padded = solvers.pad(solvers.ddim(levels_of(5)), 8)
    skipping = dfn.sample(None, DENOISE, padded, start, emit=emit, scan=dfn.while_scan(5)).trace
    np.testing.assert_allclose(skipping[3:], wanted, rtol=1e-6)
    np.testing.assert_array_equal(skipping[:3], 0.0)
    np.testing.assert_allclose(dfn.sample(None, DENOISE, padded, start, emit=emit).trace[3:], wanted, rtol=1e-6)


def test_the_padded_scan_has_its_gradient(start):
    def loss(mean, solver):
        return jnp.mean(dfn.sample(None, oracles.gaussian(mean, 0.5), solver, start).x0 ** 2)

    plain = jax.grad(loss)(0.3, solvers.dpmpp_2m(levels_of(6)))
    padded = jax.grad(loss)(0.3, solvers.pad(solvers.dpmpp_2m(levels_of(6)), 10))
    np.testing.assert_allclose(padded, plain, rtol=1e-5)


def test_bad_input_is_refused(start):
    solver = solvers.ddim(levels_of(5))
    with pytest.raises(ValueError, match="num_rows must be at least the solver's own number of rows, 5; got 4"):
        solvers.pad(solver, 4)
    with pytest.raises(ValueError, match="only tables can be padded"):
        solvers.pad(solvers.Solver(lambda x, rows: x, lambda *a: a, np.ones(3), False), 4)
    for length in (0, 6):
        with pytest.raises(ValueError, match=rf"length must lie in 1 ... 5, the number of rows; got {length}"):
            dfn.sample(None, DENOISE, solver, start, scan=dfn.while_scan(length))
