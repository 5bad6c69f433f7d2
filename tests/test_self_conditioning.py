"""Self-conditioning: the estimate of x0 as an input in training and sampling, with guidance, from a config."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import backbones, grids, guidance, parameterizations, solvers
from diffusers_fn.denoisers import bind, make_denoiser
from diffusers_fn.from_config.defaults import customise, default_config
from diffusers_fn.self_conditioning import first_estimate, self_conditioned

SCHEDULE = dfn.make_noise_schedule(dfn.linear_betas(100))


def apply(params, x, t, cond=None, *, x0=0.0):
    """A linear network of x0: its weights are by example, its class a constant."""
    x0 = jnp.repeat(x0, x.shape[0] // x0.shape[0], axis=0) if jnp.ndim(x0) else x0
    shift = 0.0 if cond is None else 0.3 * cond[:, None].astype(x.dtype)
    return params[0] * x + params[1] * x0 + shift


PARAMS = (0.2, 0.7)


def start(batch=4):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 3)))


def test_ddim_as_the_papers_loop(x64):
    levels, x = grids.leading(SCHEDULE, 5), start()
    denoise = self_conditioned(lambda x0: make_denoiser(apply, PARAMS, parameterizations.x0, x0=x0))
    got = dfn.sample(None, denoise, solvers.with_memory(solvers.ddim(levels)), x).x0

    state, x0 = np.asarray(x), np.zeros((4, 3))
    for i in range(5):
        x0 = 0.2 * state + 0.7 * x0
        eps = (state - levels.alpha[i] * x0) / levels.sigma[i]
        if i < 4:
            state = levels.alpha[i + 1] * x0 + levels.sigma[i + 1] * eps
    np.testing.assert_allclose(got, x0, rtol=1e-12)


def test_guidance_in_one_batch_is_guidance_in_two_passes(x64):
    levels, x, labels = grids.leading(SCHEDULE, 6), start(), jnp.array([0, 1, 2, 1])

    def run(batched):
        guide = guidance.classifier_free(2.0, null_cond=3, batched=batched)
        make = lambda x0: bind(guide(make_denoiser(apply, PARAMS, parameterizations.x0, x0=x0)), labels)  # noqa: E731
        return dfn.sample(None, self_conditioned(make), solvers.with_memory(solvers.ddim(levels)), x).x0

    together, apart = run(True), run(False)
    np.testing.assert_allclose(together, apart, rtol=1e-12)
    assert np.std(np.asarray(together)[:, 0]) > 0.01  # the examples differ, so a mixed-up order would show


def test_in_training_a_share_gets_its_own_estimate_without_gradient():
    x, keys = start(2000), jax.random.split(jax.random.key(0), 2000)
    predict = lambda scale: lambda x0: scale * x + x0  # noqa: E731
    estimate = first_estimate(keys, predict(2.0), x)
    conditioned = np.asarray(estimate).any(axis=1)
    np.testing.assert_array_equal(estimate, np.where(conditioned[:, None], 2.0 * x, 0.0))
    assert abs(conditioned.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)  # four standard errors
    assert float(jax.grad(lambda scale: first_estimate(keys, predict(scale), x).sum())(2.0)) == 0.0
    np.testing.assert_array_equal(first_estimate(keys, predict(2.0), x, share=0.0), jnp.zeros_like(x))
    np.testing.assert_array_equal(first_estimate(keys, predict(2.0), x, share=1.0), 2.0 * x)


class Echo(nn.Module):
    """Returns its input with reversed channels and, if `doubled`, ten times that as a learned variance."""

    doubled: bool = False

    def __call__(self, x, t, cond=None, *, train=False):
        reverse = x[..., ::-1]
        return jnp.concatenate([reverse, 10 * reverse], axis=-1) if self.doubled else reverse


@pytest.mark.parametrize("doubled", [False, True])
def test_the_network_sees_a_clipped_estimate_and_keeps_the_channels_of_x(doubled):
    x, x0 = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[-0.5, 7.0]])
    out = backbones.SelfConditioned(Echo(doubled), bound=2.0).apply({}, x, 0.0, x0=x0)
    mean = np.array([[2.0, -0.5], [2.0, -0.5]])  # the first two channels of [x, x0] reversed
    np.testing.assert_array_equal(out, np.concatenate([mean, 10 * mean], axis=-1) if doubled else mean)
    blank = backbones.SelfConditioned(Echo(doubled)).apply({}, x, 0.0)
    np.testing.assert_array_equal(blank, jnp.zeros_like(out))


def config(**sections):
    made = customise(
        default_config(),
        data={"shape": (4,)},
        backbone={"name": "mlp", "hidden_size": 8, "depth": 1, "embedding_dim": 8, "num_classes": 3},
        sampler={"num_inference_steps": 3, "cfg_scale": 1.5},
        parameterization="x0",
        self_conditioning=1.0,
    )
    return customise(made, **sections)


@pytest.mark.long
def test_a_config_trains_and_samples_with_estimates():
    model = dfn.build(config())
    params = jax.jit(model.init)(jax.random.key(0))
    # The output layer is initialised with zeros: make the output depend on the input.
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), params)
    batch = {"image": start(8).astype(jnp.float32) @ jnp.ones((3, 4)) / 4, "label": jnp.arange(8) % 3}
    gradients = jax.jit(jax.grad(lambda p: model.loss(p, jax.random.key(2), batch)[0].mean()))(params)
    estimate_rows = gradients["net"]["dense_in"]["kernel"][4:]
    assert np.abs(estimate_rows).max() > 1e-6

    @jax.jit
    def estimates(params):
        emit = lambda step: step.prediction.x0  # noqa: E731
        return model.sample(params, jax.random.key(3), 2, cond=jnp.array([0, 1]), emit=emit).trace

    first = estimates(params)
    assert np.abs(first).max() <= 1.0
    # A network that ignores the estimate returns the same in the first step, without an estimate, but not later.
    ignorant = jax.tree.map(lambda p: p, params)
    ignorant["net"]["dense_in"]["kernel"] = params["net"]["dense_in"]["kernel"].at[4:].set(0.0)
    without = estimates(ignorant)
    np.testing.assert_allclose(first[0], without[0], atol=1e-6)
    assert np.abs(first[1] - without[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"self_conditioning": -1.0}, "config.self_conditioning must be 0"),
        (
            {"sampler": {"name": "predictor_corrector", "cfg_scale": 1.0}},
            "config.sampler.name is 'predictor_corrector'",
        ),
        (
            {"loss": {"objective": "hybrid"}, "variance": "learned_range", "backbone": {"learned_variance": True}},
            "set loss.objective to 'denoising'",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        dfn.build(config(**sections))


def test_an_estimate_for_a_network_without_self_conditioning_is_refused():
    model = dfn.build(config(self_conditioning=0.0))
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"set config.self_conditioning"):
        jax.eval_shape(lambda p: model.apply(p, jnp.ones((2, 4)), 1.0, jnp.array([0, 1]), x0=jnp.ones((2, 4))), params)
    with pytest.raises(ValueError, match="x0 must have the shape of x"):
        backbones.SelfConditioned(Echo()).apply({}, jnp.ones((2, 3)), 0.0, x0=jnp.ones((2, 2)))
