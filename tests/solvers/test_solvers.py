"""Solvers as tables: each literal step is a row, and rows obey closed forms in double precision on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_checks import MEAN, MEANS, START, STD, STDS, WEIGHTS, edm, gaussian, mixture, vp

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, parameterizations, solvers

LINEAR = dfn.make_noise_schedule(dfn.linear_betas(1000))
# A plan off the VP circle.
OFF_CIRCLE = dfn.Level(np.array([0.5, 0.9, 1.3, 1.1]), np.array([2.0, 1.1, 0.6, 0.2]), np.arange(4.0)[::-1])


def std_of_gaussian_samples(solver, data_std, start_std):
    """The standard deviation of samples of N(0, data_std^2) data, from the solver's rows alone.

    The exact denoiser is linear, x0 = k x and eps = e x, so each row of a one-state method multiplies x by a number
    and adds noise. All in NumPy, float64.
    """
    rows = solver.rows
    assert rows.x.shape[1] == rows.m.shape[1] == 1
    np.testing.assert_array_equal(rows.m, 1.0)
    assert all(np.asarray(a).dtype == np.float64 for a in jax.tree.leaves(rows))
    var = (rows.level.alpha * data_std) ** 2 + rows.level.sigma**2
    gain = rows.x[:, 0] + rows.x0 * rows.level.alpha * data_std**2 / var + rows.eps * rows.level.sigma / var
    noise = np.zeros_like(gain) if rows.noise is None else rows.noise
    variance = start_std**2
    for g, n in zip(gain, noise):
        variance = g**2 * variance + n**2
    return np.sqrt(variance)


# From pure noise N(0, 1) at t = 999 of the linear schedule to data of standard deviation 0.5, on trailing levels.
EXPECTED = {
    "ddim": {10: 0.3700, 20: 0.4314, 50: 0.4714, 100: 0.4854, 1000: 0.4985},
    "eta1": {10: 0.3335, 20: 0.3915, 50: 0.4441, 100: 0.4682, 1000: 0.4961},
    "ancestral": {1000: 0.49611},
}
MAKE = {
    "ddim": solvers.ddim,
    "eta1": lambda levels: solvers.ddim(levels, eta=1.0),
    "ancestral": solvers.ancestral,
}


@pytest.mark.parametrize(("name", "n"), [(name, n) for name in EXPECTED for n in EXPECTED[name]])
def test_the_spread_of_gaussian_samples(name, n):
    solver = MAKE[name](grids.trailing(LINEAR, n))
    # Known to four digits: half a unit of the last is 1.5e-4 of 0.33.
    assert std_of_gaussian_samples(solver, 0.5, 1.0) == pytest.approx(EXPECTED[name][n], rel=1.6e-4)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_gaussian_samples_converge_to_the_data(eta):
    errors = []
    for n in (100, 200, 400, 800):
        levels = grids.uniform_log_snr(LINEAR, n)
        start = np.sqrt((0.5 * levels.alpha[0]) ** 2 + levels.sigma[0] ** 2)  # the true marginal, not N(0, 1)
        errors.append(abs(std_of_gaussian_samples(solvers.ddim(levels, eta), 0.5, start) - 0.5))
    # First order in the step.
    np.testing.assert_allclose(np.diff(np.log2(errors)), -1.0, atol=0.15)


def test_ddim_with_eta_one_is_ancestral():
    """x = alpha x0 + sigma eps turns one table into the other."""
    ddim, ancestral = solvers.ddim(OFF_CIRCLE, 1.0).rows, solvers.ancestral(OFF_CIRCLE).rows
    alpha, sigma = OFF_CIRCLE.alpha, OFF_CIRCLE.sigma
    np.testing.assert_allclose(ancestral.x0 + ancestral.x[:, 0] * alpha, ddim.x0, rtol=1e-13)
    np.testing.assert_allclose(ancestral.x[:, 0] * sigma, ddim.eps, rtol=1e-13)
    np.testing.assert_allclose(ancestral.noise, ddim.noise, rtol=1e-13)


def test_ddim_keeps_the_marginal_whatever_eta():
    for eta in (0.0, 0.3, 1.0):
        rows = solvers.ddim(OFF_CIRCLE, eta).rows
        noise = 0.0 if rows.noise is None else rows.noise[:-1]
        # Given x0, eps and z are independent and standard: alpha' x0 and variance sigma'^2.
        np.testing.assert_array_equal(rows.x0[:-1], OFF_CIRCLE.alpha[1:])
        np.testing.assert_allclose(rows.eps[:-1] ** 2 + noise**2, OFF_CIRCLE.sigma[1:] ** 2, rtol=1e-13)


def test_ddim_is_eulers_method_at_alpha_one():
    levels = grids.karras(6)
    rows = solvers.ddim(levels).rows
    # x + (sigma' - sigma) eps with x = x0 + sigma eps.
    np.testing.assert_array_equal(rows.x0, np.ones(6))
    np.testing.assert_array_equal(rows.eps, [*levels.sigma[1:], 0.0])


@pytest.mark.parametrize("variance", [dfn.fixed_small, dfn.fixed_large])
def test_ancestral_rows_are_the_table(variance):
    rows = solvers.ancestral(grids.linspace(LINEAR, 1000), variance).rows
    t = np.arange(1000)[::-1]
    # 1 - alpha_bar loses four digits of sixteen at t = 0.
    np.testing.assert_allclose(rows.x0, LINEAR.posterior_mean_coef1[t], rtol=1e-10)
    np.testing.assert_allclose(rows.x[:, 0], LINEAR.posterior_mean_coef2[t], rtol=1e-10)
    table = LINEAR.posterior_variance if variance is dfn.fixed_small else LINEAR.betas
    np.testing.assert_allclose(rows.noise[:-1] ** 2, table[t][:-1], rtol=1e-10)
    assert rows.noise[-1] == 0.0  # no noise in the last step, t = 0


def test_the_last_row_is_the_final_denoise():
    for solver in (solvers.ddim(OFF_CIRCLE), solvers.ddim(OFF_CIRCLE, 0.5), solvers.ancestral(OFF_CIRCLE)):
        rows = solver.rows
        assert (rows.x[-1, 0], rows.x0[-1], rows.eps[-1]) == (0.0, 1.0, 0.0)
        assert rows.noise is None or rows.noise[-1] == 0.0


# Each literal step of the discrete vocabulary is a row.


@pytest.fixture(scope="module")
def step_data():
    key1, key2, key3 = jax.random.split(jax.random.key(9), 3)
    return tuple(1.2 * jax.random.normal(key, (4, 6)) + 0.2 for key in (key1, key2, key3))


def constant_network(out):
    return dfn.make_denoiser(lambda params, x, t, cond: out, None, parameterizations.epsilon)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("t", "t_prev"), [(999, 980), (500, 499), (20, 0), (1, 0)])
@pytest.mark.usefixtures("x64")
def test_ddim_step_is_a_row(t, t_prev, clip, step_data, replayed_noise):
    x, out, replayed_noise.value = (jnp.asarray(a, jnp.float64) for a in step_data)
    levels = dfn.level_at(LINEAR, np.array([t, t_prev]))
    for keep_eps in (False, True) if clip else (True,):
        denoise = dfn.clip_x0(keep_eps=keep_eps)(constant_network(out)) if clip else constant_network(out)
        for eta in (0.0, 0.5, 1.0):
            row = dfn.sample(jax.random.key(0), denoise, solvers.ddim(levels, eta), x, final_denoise=False).x0
            knobs = {"clip_denoised": clip, "use_clipped_model_output": not keep_eps, "noise": replayed_noise.value}
            literal = dfn.ddim_step(LINEAR, x, t, t_prev, out, eta=eta, **knobs)
            np.testing.assert_allclose(row, literal, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("t", [999, 400, 2, 1])
@pytest.mark.usefixtures("x64")
def test_p_sample_is_a_row(t, variance, step_data, replayed_noise):
    x, out, replayed_noise.value = (jnp.asarray(a, jnp.float64) for a in step_data)
    variance = getattr(dfn, variance)
    if variance.learned:
        out = jnp.concatenate([out, jnp.tanh(out)], axis=-1)
    levels = dfn.level_at(LINEAR, np.array([t, t - 1]))
    solver = solvers.ancestral(levels, variance)
    row = dfn.sample(jax.random.key(0), dfn.clip_x0()(constant_network(out)), solver, x, final_denoise=False).x0
    literal = dfn.p_sample(jax.random.key(0), LINEAR, out, x, t, variance=variance)
    np.testing.assert_allclose(row, literal, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_p_sample_at_zero_is_the_final_denoise(step_data):
    x, out, _ = (jnp.asarray(a, jnp.float64) for a in step_data)
    solver = solvers.ancestral(dfn.level_at(LINEAR, np.array([0])))
    for clip in (False, True):
        denoise = dfn.clip_x0()(constant_network(out)) if clip else constant_network(out)
        row = dfn.sample(jax.random.key(0), denoise, solver, x).x0
        literal = dfn.p_sample(jax.random.key(0), LINEAR, out, x, 0, clip_denoised=clip)
        np.testing.assert_allclose(row, literal, rtol=1e-9, atol=1e-11)


def test_a_learned_variance_is_needed_where_it_is_used(step_data):
    x, out, _ = step_data
    solver = solvers.ancestral(OFF_CIRCLE, dfn.learned_range)
    with pytest.raises(ValueError, match=r"needs a learned variance .*use variance fixed_small or fixed_large"):
        dfn.sample(jax.random.key(0), constant_network(out), solver, x)


# Solvers as values.


def test_tables_are_float64_on_the_host_and_noise_is_optional():
    for solver in (solvers.ddim(OFF_CIRCLE), solvers.ancestral(OFF_CIRCLE), solvers.ddim(OFF_CIRCLE, np.float64(0.5))):
        for leaf in jax.tree.leaves(solver.rows):
            assert isinstance(leaf, np.ndarray)
            assert leaf.dtype == np.float64
    assert solvers.ddim(OFF_CIRCLE).rows.noise is None
    assert solvers.ddim(OFF_CIRCLE, 0).rows.noise is None
    assert not solvers.ddim(OFF_CIRCLE).stochastic
    for eta in (0.5, jnp.array(0.0), np.float32(0.0)):
        solver = solvers.ddim(OFF_CIRCLE, eta)
        assert solver.stochastic == (solver.rows.noise is not None)
    assert solvers.ddim(OFF_CIRCLE, jnp.array(0.0)).stochastic


def test_traced_levels_give_the_same_rows():
    on_device = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), OFF_CIRCLE)
    for make in (lambda levels: solvers.ddim(levels, 0.7), solvers.ancestral):
        traced, host = jax.jit(lambda levels, make=make: make(levels).rows)(on_device), make(OFF_CIRCLE).rows
        # Float32 arithmetic of numbers of order 1.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), traced, host)


def test_a_plan_an_example():
    """Levels [N, B]: each example runs its own plan."""
    single = [OFF_CIRCLE, dfn.Level(OFF_CIRCLE.alpha * 0.7, OFF_CIRCLE.sigma * 1.1, OFF_CIRCLE.t)]
    both = jax.tree.map(lambda *columns: np.stack(columns, axis=1), *single)
    denoise = dfn.oracles.gaussian(0.3, 0.5)
    x = jnp.array([[1.0, -0.5], [0.3, 2.0]])
    together = dfn.sample(None, denoise, solvers.ddim(both), x).x0
    for i in range(2):
        alone = dfn.sample(None, denoise, solvers.ddim(single[i]), x[i : i + 1]).x0
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6)


def plan(alpha, sigma):
    alpha, sigma = np.asarray(alpha), np.asarray(sigma)
    return dfn.Level(alpha, sigma, np.zeros(sigma.shape))


@pytest.mark.parametrize("make", [solvers.ddim, solvers.ancestral])
@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (plan([1.0, 1.0], [1.0, 2.0]), "must descend from the noisiest to the cleanest; log SNR falls after entry 0"),
        (plan([1.0, 1.0, 1.0], [3.0, 2.0, 2.0]), "log SNR falls after entry 1"),
        (plan([0.9, 0.1], [1.0, 0.9]), "log SNR falls after entry 0"),  # sigma falls, but alpha falls faster
        (plan([0.5, 1.0], [1.0, 0.0]), "leave the clean level out"),
        (plan([0.5, 1.0], [1.0, -0.1]), "must be noisy"),
        (plan([0.5, np.nan], [1.0, 0.5]), "finite"),
        (plan([-0.5, 1.0], [1.0, 0.5]), "alpha >= 0"),
        (plan([0.5, 1.0], np.array([1.0, 0.5], np.float16)), "levels.sigma must be float32 or float64: float16"),
        (plan(jnp.array([0.5, 1.0], jnp.bfloat16), [1.0, 0.5]), "levels.alpha must be float32 or float64: bfloat16"),
        (plan(np.array([1, 1]), [1.0, 0.5]), "levels.alpha must be float32 or float64: int"),
        (plan(0.5, 1.0), r"must be Level\[N\]"),
        (plan(np.ones(0), np.ones(0)), r"must be Level\[N\]"),
        (dfn.Level(np.ones(2), np.array([2.0, 1.0]), 0.0), r"must be Level\[N\]"),
    ],
)
def test_bad_plans_are_refused(make, levels, message):
    with pytest.raises(ValueError, match=message):
        make(levels)


@pytest.mark.parametrize("eta", [-0.1, 1.5, np.float32(2.0), jnp.array(-1.0), np.nan])
def test_eta_must_lie_in_the_unit_interval(eta):
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]; got"):
        solvers.ddim(OFF_CIRCLE, eta)


def test_pure_noise_may_start_a_plan():
    """alpha = 0 at the first level, as zero terminal SNR has it: no division by it."""
    schedule = dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(100)))
    levels = grids.trailing(schedule, 5)
    assert levels.alpha[0] == 0.0
    for solver in (solvers.ddim(levels), solvers.ddim(levels, 1.0), solvers.ancestral(levels)):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(solver.rows))
    # The exact denoiser of N(mean, std^2) returns the mean there, so the first step goes to alpha' mean + sigma' eps.
    x = jnp.array([[1.0, -2.0]])
    first = dfn.sample(
        None, dfn.oracles.gaussian(0.3, 0.5), solvers.ddim(levels), x, emit=lambda step: step.x_next
    ).trace[0]
    np.testing.assert_allclose(first, levels.alpha[1] * 0.3 + levels.sigma[1] * np.asarray(x), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_denoisers_in_numpy_are_the_oracles():
    for level in (vp(3)[1], edm(3)[0]):
        for ours, oracle in (
            (gaussian, oracles.gaussian(MEAN, STD)),
            (mixture, oracles.mixture(WEIGHTS, MEANS, STDS, independent=True)),
        ):
            wanted = oracle(jnp.asarray(START), level)
            np.testing.assert_allclose(ours(START, level), (wanted.x0, wanted.eps), rtol=1e-12)
