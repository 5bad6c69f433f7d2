"""Parameterizations: one line each, checked on data and levels without symmetry."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load
from tables import PARAMETERIZATIONS

import diffusers_fn as dfn
from diffusers_fn import parameterizations

# Five levels, none on the VP circle: alpha^2 + sigma^2 is not 1, alpha is not 1 - sigma.
LEVELS = dfn.Level(np.array([1.3, 0.7, 1.0, 0.4, 0.9]), np.array([0.3, 1.9, 2.5, 0.5, 0.02]), np.arange(5.0))


@pytest.fixture(scope="module")
def pair():
    """(x0, eps) [5, 4], asymmetric and of non-unit variance, in double precision."""
    rng = np.random.default_rng(3)
    return rng.gamma(2.0, 0.8, (5, 4)) - 0.3, 1.4 * rng.standard_normal((5, 4)) + 0.2


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.usefixtures("x64")
def test_the_target_leads_back_to_x0_and_eps(name, pair):
    x0, eps = map(jnp.asarray, pair)
    x = dfn.add_noise(x0, eps, LEVELS)
    out = dfn.target(PARAMETERIZATIONS[name], x0, eps, LEVELS)
    prediction = dfn.to_prediction(PARAMETERIZATIONS[name], out, x, LEVELS)
    # Worst condition number here: alpha / sigma = 45, so 1e-14 with room.
    np.testing.assert_allclose(prediction.x0, x0, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(prediction.eps, eps, rtol=1e-12, atol=1e-12)
    assert prediction.var_frac is None


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.usefixtures("x64")
def test_any_output_gives_a_pair_that_makes_x(name, pair):
    x, out = map(jnp.asarray, pair)  # the network may return anything
    prediction = dfn.to_prediction(PARAMETERIZATIONS[name], out, x, LEVELS)
    np.testing.assert_allclose(dfn.add_noise(prediction.x0, prediction.eps, LEVELS), x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        dfn.target(PARAMETERIZATIONS[name], prediction.x0, prediction.eps, LEVELS), out, rtol=1e-11, atol=1e-11
    )


def test_targets_are_those_of_the_papers(pair):
    x0, eps = (jnp.asarray(a, jnp.float32) for a in pair)
    level = dfn.Level(1.3, 0.3, 0.0)
    wanted = {
        "epsilon": eps,
        "x0": x0,
        "v": 1.3 * eps - 0.3 * x0,
        "score": -eps / 0.3,
        "velocity": eps - x0,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(dfn.target(PARAMETERIZATIONS[name], x0, eps, level), value, rtol=1e-5, atol=1e-6)


def test_a_pass_through_is_bit_for_bit(pair):
    """epsilon returns the output as eps and x0 returns it as x0, without rounding."""
    x, out = (jnp.asarray(a, jnp.float32) for a in pair)
    np.testing.assert_array_equal(dfn.to_prediction(parameterizations.epsilon, out, x, LEVELS).eps, out)
    np.testing.assert_array_equal(dfn.to_prediction(parameterizations.x0, out, x, LEVELS).x0, out)


@pytest.mark.parametrize("name", ["v", "x0"])
def test_x0_is_determined_at_pure_noise(name, pair):
    x0, eps = (jnp.asarray(a, jnp.float32) for a in pair)
    level = dfn.Level(0.0, 1.0, 999.0)
    out = dfn.target(PARAMETERIZATIONS[name], x0, eps, level)
    prediction = dfn.to_prediction(PARAMETERIZATIONS[name], out, eps, level)  # x is the noise itself
    np.testing.assert_array_equal(prediction.x0, x0)
    np.testing.assert_array_equal(prediction.eps, eps)


@pytest.mark.parametrize("name", ["epsilon", "v", "velocity", "edm"])
def test_clean_data_is_its_own_x0(name, pair):
    x0, out = (jnp.asarray(a, jnp.float32) for a in pair)
    prediction = dfn.to_prediction(PARAMETERIZATIONS[name], out, x0, dfn.Level(1.0, 0.0, 0.0))
    np.testing.assert_array_equal(prediction.x0, x0)


@pytest.mark.usefixtures("x64")
def test_edm_is_nvlabs_preconditioning():
    golden = load("orig_edm/precond")  # sigma_data 0.5, alpha 1
    sigma = golden["sigma"]
    level = dfn.Level(np.ones_like(sigma), sigma, np.log(sigma) / 4)
    edm = parameterizations.edm(0.5)
    ones, zeros = jnp.ones((sigma.size, 1)), jnp.zeros((sigma.size, 1))
    c_skip = dfn.to_prediction(edm, zeros, ones, level).x0[:, 0]
    c_out = dfn.to_prediction(edm, ones, zeros, level).x0[:, 0]
    np.testing.assert_allclose(c_skip, golden["EDMPrecond/c_skip_f64"], rtol=1e-13)
    np.testing.assert_allclose(c_out, golden["EDMPrecond/c_out_f64"], rtol=1e-13)
    np.testing.assert_allclose(edm.input_scale(level), golden["EDMPrecond/c_in_f64"], rtol=1e-14)


def test_edm_off_alpha_one_acts_on_x_over_alpha():
    edm = parameterizations.edm(0.7)
    level, scaled = dfn.Level(0.4, 0.6, 0.0), dfn.Level(1.0, 1.5, 0.0)
    assert edm.line(level) == pytest.approx(edm.line(scaled), rel=1e-14)
    # The network's input has unit variance when the data's standard deviation is 0.7.
    assert edm.input_scale(level) * np.sqrt((0.4 * 0.7) ** 2 + 0.6**2) == pytest.approx(1.0, rel=1e-14)
    # And so has its target: p^2 0.7^2 + q^2 = 1.
    p, q = edm.line(level)
    assert (0.7 * p) ** 2 + q**2 == pytest.approx(1.0, rel=1e-14)


def test_variance_channels_are_the_last_ones(pair):
    x, out = (jnp.asarray(a, jnp.float32) for a in pair)
    var = jnp.tanh(out)
    prediction = dfn.to_prediction(parameterizations.v, jnp.concatenate([out, var], axis=-1), x, LEVELS)
    np.testing.assert_array_equal(prediction.x0, dfn.to_prediction(parameterizations.v, out, x, LEVELS).x0)
    np.testing.assert_array_equal(prediction.var_frac, (var + 1) / 2)


def test_a_level_per_example_is_each_level_alone(pair):
    x, out = (jnp.asarray(a, jnp.float32) for a in pair)
    for parameterization in PARAMETERIZATIONS.values():
        each = dfn.to_prediction(parameterization, out, x, LEVELS)
        for i in range(5):
            alone = dfn.to_prediction(parameterization, out[i : i + 1], x[i : i + 1], LEVELS[i])
            np.testing.assert_array_equal(each.x0[i], alone.x0[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parameterizations.edm(0.0), "sigma_data must be positive; got 0.0"),
        (
            lambda: dfn.to_prediction(parameterizations.v, jnp.ones((2, 5)), jnp.ones((2, 3)), LEVELS),
            "twice its channels",
        ),
        (
            lambda: dfn.to_prediction(parameterizations.v, jnp.ones((2, 3)), jnp.ones((2, 3)), LEVELS),
            r"level.alpha must have shape \[\] or \[2\]",
        ),
        (
            lambda: dfn.to_prediction(parameterizations.v, jnp.ones((5, 3), int), jnp.ones((5, 3), int), LEVELS),
            "floating type",
        ),
        (
            lambda: dfn.target(parameterizations.v, jnp.ones((5, 3)), jnp.ones((5, 1)), LEVELS),
            "eps must have the shape of x0",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
