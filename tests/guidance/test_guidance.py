"""Classifier-free guidance: exact at scales 0 and 1, linear in the scale, in one batch or two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import guidance, parameterizations

LEVEL = dfn.Level(0.8, 0.6, 3.0)
NULL = 10


def apply(params, x, t, cond):
    """An elementwise network with variance channels, so that an example's output does not depend on its batch."""
    scale = (cond.astype(x.dtype) / 7 - 0.3)[:, None]
    label = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None]
    return jnp.concatenate([jnp.sin(3 * x + scale) + 0.1 * label * scale, jnp.tanh(scale * x)], axis=-1)


DENOISE = dfn.make_denoiser(apply, None, parameterizations.v)


@pytest.fixture(scope="module")
def batch():
    return 1.3 * jax.random.normal(jax.random.key(0), (3, 5)), jnp.array([2, 0, 7])


def exact(x, level, cond=None):
    """A denoiser without rounding, the same for every compiler: powers of two times x."""
    power = jnp.where(cond == NULL, 0.5, 2.0)[:, None]
    return dfn.Prediction(power * x, -4.0 * power * x, power + 0 * x)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("traced", [False, True])
def test_scale_one_is_conditional_and_scale_zero_unconditional_bit_for_bit(batched, traced, batch):
    x, cond = batch

    def guided(x, scale):
        return guidance.classifier_free(scale, NULL, batched=batched)(exact)(x, LEVEL, cond)

    run = jax.jit(guided) if traced else guided
    conditional, unconditional = exact(x, LEVEL, cond), exact(x, LEVEL, jnp.full(3, NULL))
    one, zero = run(x, 1.0), run(x, 0.0)
    for field in ("x0", "eps"):
        np.testing.assert_array_equal(getattr(one, field), getattr(conditional, field))
        np.testing.assert_array_equal(getattr(zero, field), getattr(unconditional, field))
    np.testing.assert_array_equal(zero.var_frac, conditional.var_frac)


def test_one_batch_of_pairs_equals_two_batches(batch):
    x, cond = batch
    level = dfn.Level(jnp.array([0.8, 0.4, 1.1]), jnp.array([0.6, 1.2, 0.2]), jnp.array([3.0, 9.0, 1.0]))
    for at in (LEVEL, level):
        pairs, passes = (guidance.classifier_free(2.5, NULL, batched=b)(DENOISE)(x, at, cond) for b in (True, False))
        jax.tree.map(np.testing.assert_array_equal, pairs, passes)


def test_the_formula(batch):
    x, cond = batch
    conditional, unconditional = DENOISE(x, LEVEL, cond), DENOISE(x, LEVEL, jnp.full(3, NULL))
    guided = guidance.classifier_free(4.0, NULL)(DENOISE)(x, LEVEL, cond)
    for field in ("x0", "eps"):
        c, u = np.asarray(getattr(conditional, field), float), np.asarray(getattr(unconditional, field), float)
        # uncond + w (cond - uncond) in double precision; ours rounds terms of size 4 |c| three times in float32.
        np.testing.assert_allclose(getattr(guided, field), u + 4.0 * (c - u), atol=4 * 4 * 6e-8 * np.abs([c, u]).max())
    # Guidance is linear: x = alpha x0 + sigma eps still holds.
    np.testing.assert_allclose(0.8 * guided.x0 + 0.6 * guided.eps, x, atol=1e-5)


def test_one_scale_per_example(batch):
    x, cond = batch
    guided = guidance.classifier_free(jnp.array([0.0, 1.0, 3.0]), NULL)(DENOISE)(x, LEVEL, cond)
    for i, scale in enumerate((0.0, 1.0, 3.0)):
        alone = guidance.classifier_free(scale, NULL)(DENOISE)(x[i : i + 1], LEVEL, cond[i : i + 1])
        np.testing.assert_array_equal(guided.eps[i], alone.eps[0])


def test_the_scale_may_depend_on_the_level(batch):
    x, cond = batch
    scheduled = guidance.classifier_free(lambda level: jnp.where(level.sigma < 0.5, 1.0, 3.0), NULL)(DENOISE)
    for sigma, scale in ((0.4, 1.0), (0.6, 3.0)):
        level = dfn.Level(0.8, sigma, 3.0)
        wanted = guidance.classifier_free(scale, NULL, batched=False)(DENOISE)(x, level, cond)
        np.testing.assert_array_equal(scheduled(x, level, cond).eps, wanted.eps)


def test_conditioning_may_be_a_pytree(batch):
    x, cond = batch
    net = lambda params, x, t, cond: x * cond["a"][:, None] + cond["b"]  # noqa: E731
    denoise = dfn.make_denoiser(net, None, parameterizations.epsilon)
    tree = {"a": cond.astype(float), "b": jnp.ones((3, 5))}
    null = {"a": 0.0, "b": jnp.full(5, -1.0)}
    guided = guidance.classifier_free(2.0, null)(denoise)(x, LEVEL, tree).eps
    np.testing.assert_allclose(guided, 2 * (x * cond[:, None] + 1) + 1, rtol=1e-6, atol=1e-6)


def test_no_condition_is_refused(batch):
    with pytest.raises(ValueError, match=r"needs cond .* use guidance scale 1"):
        guidance.classifier_free(2.0, NULL)(DENOISE)(batch[0], LEVEL)


def test_scale_one_costs_one_evaluation(batch):
    x, cond = batch
    sizes = []
    counting = lambda x, level, cond=None: (sizes.append(x.shape[0]), DENOISE(x, level, cond))[1]  # noqa: E731
    guidance.classifier_free(1.0, NULL)(counting)(x, LEVEL, cond)
    guidance.classifier_free(2.0, NULL)(counting)(x, LEVEL, cond)
    guidance.classifier_free(2.0, NULL, batched=False)(counting)(x, LEVEL, cond)
    assert sizes == [3, 6, 3, 3]


def test_apply_guidance():
    cond, uncond = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 4.0]])
    np.testing.assert_array_equal(dfn.apply_guidance(cond, uncond, 3.0), [[0.5 + 3 * 0.5, 4 - 3 * 6]])
    np.testing.assert_array_equal(dfn.apply_guidance(cond, uncond, 1.0), cond)
    np.testing.assert_array_equal(dfn.apply_guidance(cond, uncond, jnp.zeros(1)), uncond)


@pytest.mark.parametrize("schedule", [dfn.linear_guidance_schedule, dfn.cosine_guidance_schedule])
def test_schedules_run_from_start_to_end(schedule):
    # Float32: cos(pi) and the products round at 7.5 * 6e-8.
    assert float(schedule(0, 10)) == pytest.approx(1.0, abs=1e-6)
    assert float(schedule(10, 10)) == pytest.approx(7.5, abs=1e-6)
    assert float(schedule(5, 10, 2.0, 4.0)) == pytest.approx(3.0, abs=1e-6)
    values = jax.vmap(lambda step: schedule(step, 20, 5.0, 1.0))(jnp.arange(21))
    assert np.all(np.diff(values) < 0)


def test_schedules_by_formula():
    assert float(dfn.linear_guidance_schedule(3, 12, 1.0, 5.0)) == pytest.approx(2.0, abs=1e-6)
    # Half a cosine: a quarter of the steps cover (1 - cos(pi / 4)) / 2 of the range.
    wanted = 1.0 + 4.0 * (1 - np.cos(np.pi / 4)) / 2
    assert float(dfn.cosine_guidance_schedule(3, 12, 1.0, 5.0)) == pytest.approx(wanted, abs=1e-6)
