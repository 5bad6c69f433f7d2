"""Laws of every guidance: the neutral scale changes no bit, another scale compiles nothing, JAX's transforms apply.

A new guidance joins by one line in GUIDANCES.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, oracles, parameterizations, solvers

NULL = 10
LEVEL = dfn.Level(0.8, 0.6, 3.0)
LABELS = jnp.arange(8) % 5
SOLVER = solvers.ancestral(dfn.Level(np.array([0.8, 0.9]), np.array([0.6, 0.5]), np.array([3.0, 1.0])))


def exact(x, level, cond):
    """A denoiser without rounding, the same for every compiler: powers of two times x."""
    power = jnp.where(cond == NULL, 0.5, 2.0)[:, None]
    x = jnp.where(cond[:, None] == 3, x[:, ::-1], x)
    return dfn.Prediction(power * x, -4.0 * power * x, power + 0 * x)


def smooth(x, level, cond):
    """A nonlinear denoiser with x = alpha x0 + sigma eps that depends on the class label."""
    x0 = jnp.sin(2 * x + (0.3 * cond.astype(x.dtype))[:, None])
    return dfn.Prediction(x0, (x - level.alpha * x0) / level.sigma, jnp.cos(x))


def worse(denoise):
    return dfn.map_x0(lambda x0: 0.5 * x0)(denoise)


def log_prob(x, level, cond=None):
    return jnp.sum(jnp.sin(x), axis=-1)


def pair(x):
    return x[:, :2] + x[:, 1:3]


MEASURED = jnp.ones((8, 2))

# name -> ((scale, denoiser) -> transform, the neutral scale, at which the result is the conditional denoiser).
GUIDANCES = {
    "classifier_free": (lambda s, _: guidance.classifier_free(s, NULL), 1.0),
    "two passes": (lambda s, _: guidance.classifier_free(s, NULL, batched=False), 1.0),
    "channels": (lambda s, _: guidance.classifier_free(s, NULL, channels=2), 1.0),
    "rescaled": (lambda s, _: guidance.classifier_free(s, NULL, rule=guidance.rescaled(0.7)), 1.0),
    "rescaled v": (
        lambda s, _: guidance.classifier_free(s, NULL, rule=guidance.rescaled(0.3, on=parameterizations.v)),
        1.0,
    ),
    "projected": (lambda s, _: guidance.classifier_free(s, NULL, rule=guidance.projected(0.5, 0.7)), 1.0),
    "autoguidance": (lambda s, denoise: guidance.autoguidance(worse(denoise), s), 1.0),
    "perpendicular": (lambda s, _: guidance.perpendicular_negative(1.0, NULL, [3], [s]), 0.0),
    "classifier": (lambda s, _: guidance.classifier(log_prob, s), 0.0),
    "mean shift": (lambda s, _: guidance.classifier_mean_shift(log_prob, SOLVER, s), 0.0),
    "dps": (lambda s, _: guidance.dps(pair, MEASURED, noise_std=0.3, scale=s), 0.0),
    "dps by the norm": (lambda s, _: guidance.dps(pair, MEASURED, scale=s), 0.0),
    "pigdm": (lambda s, _: guidance.pigdm(pair, MEASURED, noise_std=0.3, scale=s), 0.0),
}


@pytest.fixture(scope="module")
def x():
    return 1.3 * jax.random.normal(jax.random.key(0), (8, 4))


@pytest.mark.parametrize("name", GUIDANCES)
def test_the_neutral_scale_changes_no_bit_and_a_new_scale_compiles_nothing(name, x):
    make, neutral = GUIDANCES[name]
    guided = jax.jit(lambda x, scale: make(scale, exact)(exact)(x, LEVEL, LABELS))
    jax.tree.map(np.testing.assert_array_equal, guided(x, neutral), exact(x, LEVEL, LABELS))
    assert float(jnp.abs(guided(x, 3.0).x0 - guided(x, neutral).x0).max()) > 0.01
    assert guided._cache_size() == 1


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.usefixtures("x64")
def test_an_example_is_guided_alone(name, x):
    """A batch with one scale and level per example equals each example alone, with the scale as a function."""
    make, _ = GUIDANCES[name]
    if "mean shift" in name or "dps" in name or "pigdm" in name:
        return  # the measurement y and the table belong to the whole batch: tested in their own files
    x = jnp.asarray(x, jnp.float64)
    scales = jnp.linspace(0.0, 4.0, 8)
    levels = dfn.Level(jnp.linspace(0.5, 0.9, 8), jnp.linspace(0.9, 0.4, 8), jnp.arange(8.0))
    by_example = lambda x, level, cond: smooth(x, jax.tree.map(lambda a: jnp.reshape(a, (-1, 1)), level), cond)  # noqa: E731
    together = jax.jit(make(scales, by_example)(by_example))(x, levels, LABELS)

    @jax.jit
    def guided_alone(x, level, label, scale):
        return make(lambda level: scale + 0 * level.t, by_example)(by_example)(x, level, label)

    for i in (0, 5):
        level = jax.tree.map(lambda a, i=i: a[i], levels)
        alone = guided_alone(x[i : i + 1], level, LABELS[i : i + 1], scales[i])
        np.testing.assert_allclose(alone.x0[0], together.x0[i], rtol=1e-12)
        np.testing.assert_allclose(alone.eps[0], together.eps[i], rtol=1e-12)


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.usefixtures("x64")
def test_the_guided_prediction_is_consistent_with_x_and_has_derivatives(name, x):
    make, _ = GUIDANCES[name]
    x = jnp.asarray(x, jnp.float64)

    direction = jnp.cos(jnp.arange(32.0)).reshape(8, 4)

    @jax.jit
    def run(h):
        """((the sum of x0^2, the prediction), the derivative of the sum) along a direction of x and scale."""

        def total(h):
            prediction = make(2.5 + h, smooth)(smooth)(x + h * direction, LEVEL, LABELS)
            return jnp.sum(prediction.x0**2), prediction

        return jax.value_and_grad(total, has_aux=True)(h)

    (_, prediction), slope = run(0.0)
    np.testing.assert_allclose(0.8 * prediction.x0 + 0.6 * prediction.eps, x, atol=1e-12)
    h = 1e-5
    tolerance = 1e-4 if name == "pigdm" else 1e-6  # the system is solved to 1e-5
    np.testing.assert_allclose(slope, (run(h)[0][0] - run(-h)[0][0]) / (2 * h), rtol=tolerance)


@pytest.mark.parametrize("name", GUIDANCES)
def test_vmap_and_sharding_change_nothing(name, x):
    make, _ = GUIDANCES[name]
    run = jax.jit(lambda x: make(2.5, smooth)(smooth)(x, LEVEL, LABELS).x0)
    wanted = run(x)
    # Two compilations round sines and sums of this size differently.
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(jnp.stack([x, 2 * x]))[0], wanted, rtol=1e-4, atol=2e-5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    sharded = jax.jit(run, out_shardings=split)(jax.device_put(x, split))
    np.testing.assert_allclose(sharded, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", GUIDANCES)
def test_it_samples_in_one_scan(name, x):
    make, _ = GUIDANCES[name]
    levels = grids.exponential(4, sigma_min=0.1, sigma_max=2.0)
    if name == "mean shift":
        make = lambda s, _: guidance.classifier_mean_shift(log_prob, solvers.ancestral(levels), s)  # noqa: E731
    denoise = lambda x, level, cond: oracles.gaussian(0.2, 0.5)(x + 0.1 * cond[:, None].astype(x.dtype), level)  # noqa: E731
    guided = dfn.bind(make(1.5, denoise)(denoise), LABELS)
    scanned = dfn.sample(jax.random.key(1), guided, solvers.ancestral(levels), 2 * x)
    stepped = dfn.sample(jax.random.key(1), guided, solvers.ancestral(levels), 2 * x, scan=dfn.python_scan)
    np.testing.assert_allclose(scanned.x0, stepped.x0, rtol=1e-4, atol=1e-5)
