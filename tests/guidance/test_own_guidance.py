"""A rule and a transform written outside of the package, with public names only: the skeleton of a new guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import guidance, parameterizations

NULL = 10.0
LEVEL = dfn.Level(0.8, 0.6, 3.0)


def zero_star(on=parameterizations.velocity):
    """Returns the rule of CFG-Zero*, which rescales the unconditional output before it guides away from it.

        out' = out_cond + (scale - 1) (out_cond - s out_uncond),    s = <out_cond, out_uncond> / |out_uncond|^2

    Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025,
    https://arxiv.org/abs/2503.18886, section 4.1.
    """

    def rule(better, worse, scale, level):
        # 1. Both predictions as outputs of the parameterization in which the paper combines them.
        cond, uncond = (dfn.target(on, p.x0, p.eps, level) for p in (better, worse))
        # 2. The formula, as a shift of the conditional output that is zero at scale 1.
        s = guidance.inner_product(cond, uncond) / guidance.inner_product(uncond, uncond)
        shift = (scale - 1) * (cond - s * uncond)
        # 3. The prediction with this shift at the same x. A learned variance is kept.
        return guidance.shift_output(better, shift, level, on)

    return rule


def interpolated_eps(scale, null_cond, weight):
    """Returns a transform: x0 is guided as usual, eps is a mean of both predictions. For what is not a rule."""

    def transform(denoise):
        def guided(x, level, cond=None):
            conditional, unconditional = guidance.predict_both(denoise, x, level, cond, null_cond)
            w = guidance.scale_at(scale, level, x)  # a number, [B] or a function of the level, ready to multiply x
            x0 = (1 - w) * unconditional.x0 + w * conditional.x0
            eps = (1 - weight) * unconditional.eps + weight * conditional.eps
            return dfn.Prediction(x0, eps, conditional.var_frac)

        return guided

    return transform


@pytest.fixture(scope="module")
def batch():
    return jax.random.normal(jax.random.key(0), (3, 4)), jnp.array([1.0, 2.0, 3.0])


def denoise(x, level, cond):
    x0 = jnp.sin(2 * x + 0.3 * cond[:, None])
    return dfn.Prediction(x0, (x - level.alpha * x0) / level.sigma)


def test_a_rule_serves_every_guidance_that_takes_one(batch):
    x, cond = batch
    by_condition = guidance.classifier_free(3.0, NULL, rule=zero_star())(denoise)
    ours = jax.jit(by_condition)(x, LEVEL, cond)
    both = [jax.jit(denoise)(x, LEVEL, c) for c in (cond, jnp.full(3, NULL))]
    c, u = (np.asarray(p.eps - p.x0, np.float64) for p in both)  # velocities
    s = np.sum(c * u, axis=1, keepdims=True) / np.sum(u * u, axis=1, keepdims=True)
    np.testing.assert_allclose(ours.eps - ours.x0, c + 2 * (c - s * u), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(0.8 * ours.x0 + 0.6 * ours.eps, x, atol=1e-5)
    worse = lambda x, level, cond: denoise(x, level, jnp.full(3, NULL))  # noqa: E731
    by_model = guidance.autoguidance(worse, 3.0, rule=zero_star())(denoise)
    np.testing.assert_allclose(jax.jit(by_model)(x, LEVEL, cond).x0, ours.x0, rtol=1e-5, atol=1e-5)


def test_at_scale_one_a_rule_returns_the_conditional_prediction(batch):
    x, cond = batch
    run = jax.jit(lambda scale: guidance.classifier_free(scale, NULL, rule=zero_star())(denoise)(x, LEVEL, cond))
    np.testing.assert_allclose(run(1.0).x0, denoise(x, LEVEL, cond).x0, atol=1e-6)


def test_a_transform_is_made_of_public_parts(batch):
    x, cond = batch
    ours = jax.jit(interpolated_eps(lambda level: 5 * level.sigma, NULL, 0.25)(denoise))(x, LEVEL, cond)
    c, u = (denoise(x, LEVEL, each) for each in (cond, jnp.full(3, NULL)))
    np.testing.assert_allclose(ours.x0, 3 * c.x0 - 2 * u.x0, atol=1e-5)
    np.testing.assert_allclose(ours.eps, 0.25 * c.eps + 0.75 * u.eps, atol=1e-5)
