"""Running solvers: samples of known standard deviation, keys, traces, and refused input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers

LINEAR = dfn.make_noise_schedule(dfn.linear_betas(1000))
DENOISE = oracles.gaussian(0.3, 0.5)
LEVELS = grids.trailing(LINEAR, 6)


@pytest.fixture(scope="module")
def start():
    return jax.random.normal(jax.random.key(0), (4, 3))


# The standard deviation of samples, by simulation: the exact values are in test_solvers.


@pytest.mark.parametrize(("eta", "n", "wanted"), [(0.0, 20, 0.4314), (0.0, 50, 0.4714), (1.0, 20, 0.3915)])
def test_simulated_samples_have_the_exact_spread(eta, n, wanted):
    size = 20_000
    x = jax.random.normal(jax.random.key(1), (size, 1))
    solver = solvers.ddim(grids.trailing(LINEAR, n), eta)
    x0 = dfn.sample(jax.random.key(2), oracles.gaussian(0.0, 0.5), solver, x).x0
    # A standard deviation from n normal draws has the relative standard error 1 / sqrt(2 n).
    assert abs(float(jnp.std(x0)) - wanted) < 4 * wanted / np.sqrt(2 * size) + 5e-5
    assert abs(float(jnp.mean(x0))) < 4 * wanted / np.sqrt(size)


def test_ancestral_samples_of_a_mixture_are_the_mixture():
    size = 4_000
    weights, means, stds = [0.3, 0.7], [-0.9, 0.6], [0.2, 0.3]
    x = jax.random.normal(jax.random.key(3), (size, 1))
    solver = solvers.ancestral(grids.linspace(LINEAR, 200))
    x0 = np.asarray(dfn.sample(jax.random.key(4), oracles.mixture(weights, means, stds), solver, x).x0)[:, 0]
    # Of the left component's draws all but 2e-4 lie below -0.2, of the right one's 4e-3 do.
    share = np.mean(x0 < -0.2)
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / size) + 0.01  # and a step size's bias
    assert abs(np.mean(x0) - 0.15) < 4 * np.std(x0) / np.sqrt(size) + 0.02


def test_eta_one_is_ancestral_step_for_step(start):
    emit = lambda step: step.x_next  # noqa: E731
    ddim = dfn.sample(jax.random.key(5), DENOISE, solvers.ddim(LEVELS, 1.0), start, emit=emit)
    ancestral = dfn.sample(jax.random.key(5), DENOISE, solvers.ancestral(LEVELS), start, emit=emit)
    # The same noise, other sums: float32 rounding of numbers up to 4, amplified by no step here.
    np.testing.assert_allclose(ddim.trace, ancestral.trace, rtol=1e-5, atol=4e-6)


# Traces, scans, dtypes.


def test_the_trace_holds_every_step(start):
    samples = dfn.sample(None, DENOISE, solvers.ddim(LEVELS), start, emit=lambda step: step)
    step = samples.trace
    assert step.x.shape == (6, 4, 3)
    np.testing.assert_array_equal(step.x[0], start)
    np.testing.assert_array_equal(step.x[1:], step.x_next[:-1])
    np.testing.assert_array_equal(step.x_next[-1], samples.x0)
    # The sum may be fused with the computation of x0: a rounding.
    np.testing.assert_allclose(step.prediction.x0[-1], samples.x0, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(step.level.t, LEVELS.t.astype(np.float32))
    assert dfn.sample(None, DENOISE, solvers.ddim(LEVELS), start).trace is None


def test_weights_of_the_state_that_are_zero_on_the_host_are_not_multiplied(start):
    plan = solvers.ddim(LEVELS)
    padded = solvers.pad(plan, 9)  # its first rows keep the state
    passed = jax.jit(lambda plan, x: dfn.sample(None, DENOISE, plan, x).x0)
    known = jax.jit(lambda x: dfn.sample(None, DENOISE, plan, x).x0)
    for got in (known(start), jax.jit(lambda x: dfn.sample(None, DENOISE, padded, x).x0)(start)):
        np.testing.assert_allclose(got, passed(plan, start), rtol=1e-6, atol=1e-7)
    products = [
        str(jax.make_jaxpr(f)(*args)).count(" mul ") for f, args in ((known, (start,)), (passed, (plan, start)))
    ]
    assert products[0] == products[1] - 1


def test_without_the_final_denoise_the_state_is_left_at_the_last_level(start):
    emit = lambda step: step.x  # noqa: E731
    whole = dfn.sample(None, DENOISE, solvers.ddim(LEVELS), start, emit=emit)
    left = dfn.sample(None, DENOISE, solvers.ddim(LEVELS), start, emit=emit, final_denoise=False)
    assert left.trace.shape == (5, 4, 3)
    np.testing.assert_array_equal(left.x0, whole.trace[-1])


def test_one_level_is_one_denoise(start):
    x0 = dfn.sample(None, DENOISE, solvers.ddim(LEVELS[:1]), start).x0
    level = jax.tree.map(np.float32, LEVELS[0])
    np.testing.assert_allclose(x0, DENOISE(start, level).x0, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_python_scan_is_lax_scan(eta, start):
    arguments = (jax.random.key(7), DENOISE, solvers.ddim(LEVELS, eta), start)
    emit = lambda step: (step.x, step.prediction.eps)  # noqa: E731
    compiled = dfn.sample(*arguments, emit=emit)
    stepped = dfn.sample(*arguments, emit=emit, scan=dfn.python_scan)
    # The compiled body may fuse a product into a sum, once per row.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), compiled, stepped)
    assert dfn.sample(*arguments, scan=dfn.python_scan).trace is None


def test_half_precision_data_are_sampled_in_float32(start):
    low = dfn.sample(None, DENOISE, solvers.ddim(LEVELS), start.astype(jnp.bfloat16)).x0
    assert low.dtype == jnp.float32
    same_start = start.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(low, dfn.sample(None, DENOISE, solvers.ddim(LEVELS), same_start).x0)


def test_the_table_is_rounded_once_to_the_data(start):
    rows = []
    spy = lambda body, init, xs: (rows.append(xs[1]), jax.lax.scan(body, init, xs))[1]  # noqa: E731
    solver = solvers.ancestral(LEVELS)
    dfn.sample(jax.random.key(0), DENOISE, solver, start, scan=spy)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rows[0]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), rows[0], solver.rows)


# Keys.


def test_an_example_depends_on_its_own_key_alone(start):
    keys = jax.random.split(jax.random.key(8), 4)
    run = jax.jit(lambda keys, x: dfn.sample(keys, DENOISE, solvers.ddim(LEVELS, 0.8), x).x0)
    together = run(keys, start)
    np.testing.assert_array_equal(together, run(keys[::-1], start[::-1])[::-1])
    other = run(keys.at[3].set(jax.random.key(99)), start)
    np.testing.assert_array_equal(together[:3], other[:3])
    assert bool(jnp.all(together[3] != other[3]))


def test_raw_keys_work_as_typed_ones(start):
    solver = solvers.ddim(LEVELS, 0.8)
    for typed, raw in (
        (jax.random.key(3), jax.random.PRNGKey(3)),
        (jax.random.split(jax.random.key(3), 4), jax.random.split(jax.random.PRNGKey(3), 4)),
    ):
        np.testing.assert_array_equal(
            dfn.sample(typed, DENOISE, solver, start).x0, dfn.sample(raw, DENOISE, solver, start).x0
        )


def test_rows_draw_different_noise(start):
    solver = solvers.ancestral(LEVELS)
    samples = dfn.sample(jax.random.key(1), DENOISE, solver, start, emit=lambda step: step)
    step, rows = samples.trace, solver.rows
    mean = rows.x[:, 0, None, None] * step.x + rows.x0[:, None, None] * step.prediction.x0
    z = np.asarray(step.x_next - mean)[:-1] / rows.noise[:-1, None, None]
    correlation = np.corrcoef(z.reshape(5, -1))
    assert np.abs(correlation - np.eye(5)).max() < 0.95
    assert 0.5 < z.std() < 1.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: dfn.sample(None, DENOISE, solvers.ancestral(LEVELS), x), "this solver draws noise: pass a key"),
        (
            lambda x: dfn.sample(jax.random.split(jax.random.key(0), 3), DENOISE, solvers.ancestral(LEVELS), x),
            "3 keys for a batch of 4",
        ),
        (
            lambda x: dfn.sample(jax.random.split(jax.random.key(0), (2, 2)), DENOISE, solvers.ancestral(LEVELS), x),
            "with 2 axes",
        ),
        (lambda x: dfn.sample(7, DENOISE, solvers.ancestral(LEVELS), x), "key must be a JAX random key"),
        (lambda x: dfn.sample(None, DENOISE, solvers.ddim(LEVELS), x.astype(int)), "x must be an array of floating"),
        (lambda x: dfn.sample(None, DENOISE, solvers.ddim(LEVELS), x[0, 0]), "got a scalar"),
        (lambda x: dfn.invert(DENOISE, LEVELS, x.astype(jnp.uint8)), "x0 must be an array of floating type"),
        (lambda x: dfn.invert(DENOISE, LEVELS[::-1], x), "must descend"),
        (lambda x: dfn.invert(DENOISE, dfn.level_at(LINEAR, np.array([5, -1])), x), "leave the clean level out"),
    ],
)
def test_bad_input_is_refused(call, message, start):
    with pytest.raises(ValueError, match=message):
        call(start)
