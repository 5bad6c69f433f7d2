"""Denoisers and their transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load

import diffusers_fn as dfn
from diffusers_fn import oracles, parameterizations

LEVEL = dfn.Level(0.8, 0.6, 3.0)


@pytest.fixture(scope="module")
def x():
    return 1.5 * jax.random.normal(jax.random.key(0), (4, 3, 2)) + 0.4


def off_circle(batch_size):
    """Returns one level per example, off the VP circle."""
    return dfn.Level(jnp.linspace(0.4, 1.3, batch_size), jnp.linspace(1.9, 0.3, batch_size), jnp.arange(4.0))


def test_the_network_is_called_with_x_the_time_label_and_cond(x):
    seen = {}

    def apply(params, x, t, cond, **options):
        seen.update(params=params, x=x, t=t, cond=cond, **options)
        return x

    level = off_circle(4)
    dfn.make_denoiser(apply, "weights", parameterizations.v, train=False)(x, level, cond="label")
    assert (seen["params"], seen["cond"], seen["train"]) == ("weights", "label", False)
    np.testing.assert_array_equal(seen["x"], x)
    np.testing.assert_array_equal(seen["t"], level.t)
    # edm scales its input: x / sqrt(sigma^2 + (sigma_data alpha)^2).
    dfn.make_denoiser(apply, None, parameterizations.edm(0.5))(x, LEVEL)
    np.testing.assert_allclose(seen["x"], x / np.sqrt(0.36 + 0.16), rtol=1e-6)


@pytest.mark.parametrize("transform", [dfn.clip_x0(0.5), dfn.dynamic_threshold(0.9), dfn.map_x0(jnp.sin)])
def test_transforms_keep_x(transform, x):
    level = off_circle(4)
    prediction = transform(oracles.gaussian(0.3, 1.2))(x, level)
    # x0 and eps are of order 1 and alpha / sigma is at most 4.3: a few float32 roundings.
    np.testing.assert_allclose(dfn.add_noise(prediction.x0, prediction.eps, level), x, rtol=1e-5, atol=2e-6)


def test_clipping_changes_nothing_inside_the_bound(x):
    plain, clipped = (f(oracles.gaussian(0.3, 1.2))(x, LEVEL) for f in (lambda d: d, dfn.clip_x0(0.7)))
    inside = jnp.abs(plain.x0) <= 0.7
    assert 0 < int(inside.sum()) < x.size
    np.testing.assert_array_equal(clipped.x0, jnp.clip(plain.x0, -0.7, 0.7))
    np.testing.assert_array_equal(clipped.eps[inside], plain.eps[inside])
    assert bool(jnp.all(clipped.eps[~inside] != plain.eps[~inside]))


def test_keep_eps_keeps_eps(x):
    plain = oracles.gaussian(0.3, 1.2)(x, LEVEL)
    for transform in (dfn.clip_x0(0.5, keep_eps=True), dfn.dynamic_threshold(0.5, keep_eps=True)):
        kept = transform(oracles.gaussian(0.3, 1.2))(x, LEVEL)
        np.testing.assert_array_equal(kept.eps, plain.eps)
        assert bool(jnp.any(kept.x0 != plain.x0))


@pytest.mark.usefixtures("x64")
def test_dynamic_thresholding_is_diffusers():
    """The recorded x0 of DDPM steps with dynamic_thresholding_ratio 0.8 and sample_max_value 1.5, and their means."""
    golden = load("steps/ddpm")
    schedules = {"linear": dfn.linear_betas, "scaled_linear": dfn.scaled_linear_betas, "cosine": dfn.cosine_betas}
    kinds = {
        "epsilon": parameterizations.epsilon,
        "sample": parameterizations.x0,
        "v_prediction": parameterizations.v,
    }
    x, out = jnp.asarray(golden["xt"]), jnp.asarray(golden["model_output"])
    cases = [key.rsplit("/", 1)[0] for key in golden if "/thres/" in key and key.endswith("x0_f64")]
    assert len(cases) > 20
    for case in cases:
        name, kind, _, _, steps, t = case.split("/")
        t = int(t[1:])
        schedule = dfn.make_noise_schedule(schedules[name](1000))
        level = dfn.level_at(schedule, np.full(4, t))
        denoise = dfn.make_denoiser(lambda params, x, t, cond: out, None, kinds[kind])
        x0_hat = dfn.dynamic_threshold(0.8, 1.5)(denoise)(x, level).x0
        np.testing.assert_allclose(x0_hat, golden[f"{case}/x0_f64"], rtol=1e-9, atol=1e-11)
        cleaner = dfn.level_at(schedule, np.full(4, max(t - (20 if steps == "N50" else 1), -1)))
        coef_x0, coef_x, _ = (np.reshape(c, (4, 1, 1, 1)) for c in dfn.posterior(level, cleaner))
        np.testing.assert_allclose(coef_x0 * x0_hat + coef_x * x, golden[f"{case}/mean_f64"], rtol=1e-9, atol=1e-10)


def test_dynamic_threshold_by_hand():
    x0 = jnp.array([[0.0, 1.0, -2.0, 3.0, 4.0], [0.1, 0.2, -0.3, 0.4, 0.5]])
    denoise = dfn.make_denoiser(lambda params, x, t, cond: x0, None, parameterizations.x0)
    # Per example: the median of |x0| is 2 in the first, 0.3 (hence 1) in the second.
    wanted = [[0.0, 0.5, -1.0, 1.0, 1.0], [0.1, 0.2, -0.3, 0.4, 0.5]]
    np.testing.assert_allclose(dfn.dynamic_threshold(0.5)(denoise)(x0, LEVEL).x0, wanted, rtol=1e-6)
    # A bound of 1 is plain clipping.
    bounded = dfn.dynamic_threshold(0.5, 1.0)(denoise)(x0, LEVEL)
    np.testing.assert_array_equal(bounded.x0, jnp.clip(x0, -1, 1))


def test_chain_applies_the_first_transform_first(x):
    add, double = dfn.map_x0(lambda x0: x0 + 1), dfn.map_x0(lambda x0: 2 * x0)
    plain = oracles.gaussian(0.3, 1.2)
    x0 = plain(x, LEVEL).x0
    np.testing.assert_array_equal(dfn.chain(add, double)(plain)(x, LEVEL).x0, 2 * (x0 + 1))
    np.testing.assert_array_equal(dfn.chain(double, add)(plain)(x, LEVEL).x0, 2 * x0 + 1)
    assert dfn.chain()(plain) is plain


def test_transforms_pass_cond_and_variance_on(x):
    apply = lambda params, x, t, cond: jnp.concatenate([x * cond[:, None, None], x], axis=-1)  # noqa: E731
    denoise = dfn.make_denoiser(apply, None, parameterizations.epsilon)
    cond = jnp.arange(4.0)
    plain = denoise(x, LEVEL, cond)
    for transformed in (dfn.clip_x0(100.0)(denoise), dfn.bind(denoise, cond), dfn.clip_x0(100.0)(denoise)):
        given = () if transformed.__name__ == "bound" else (cond,)
        jax.tree.map(np.testing.assert_array_equal, transformed(x, LEVEL, *given), plain)
    np.testing.assert_array_equal(plain.var_frac, (x + 1) / 2)


def test_a_bound_condition_cannot_be_given_again(x):
    bound = dfn.bind(oracles.gaussian(0.0, 1.0), jnp.arange(4))
    with pytest.raises(ValueError, match="bound already"):
        bound(x, LEVEL, jnp.arange(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dfn.clip_x0(0.0), "bound must be positive; got 0.0"),
        (lambda: dfn.dynamic_threshold(99.5), r"percentile must lie in \(0, 1\], for instance 0.995; got 99.5"),
        (lambda: dfn.dynamic_threshold(0.9, 0.5), "max_value must be at least 1"),
        (
            lambda: dfn.make_denoiser(lambda params, x, t, cond: x[:, :1], None, parameterizations.v)(
                jnp.ones((2, 3)), LEVEL
            ),
            "twice its channels",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
