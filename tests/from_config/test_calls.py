"""Built models: mistaken calls are refused at once, and all functions work under strict dtype promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_config, some_params

import diffusers_fn as dfn
from diffusers_fn import grids, likelihood

X, KEY = jnp.ones((4, 2)), jax.random.key(0)


def model(**options):
    diffusion = dfn.build(small_config(**options))
    return diffusion, some_params(diffusion.init)


def call(name, *arguments, num_classes=0, **options):
    diffusion, params = model(num_classes=num_classes)
    return getattr(diffusion, name)(params, *arguments, **options)


MISTAKES = {
    "a name for labels": (
        lambda: call("sample", KEY, 4, cond="cat", num_classes=3),
        r"labels must be integers .*; got 'cat'",
    ),
    "a string for a scale": (
        lambda: call("sample", KEY, 4, cond=0, guidance_scale="2", num_classes=3),
        r"scale must be a number.*got '2'",
    ),
    "a string for a number": (lambda: call("sample", KEY, "4"), "num_samples must be an integer .*; got '4'"),
    "an array for a batch": (lambda: call("loss", KEY, X), "a batch must be a dict"),
    "a seed for a key": (lambda: call("sample", 0, 4), "must be a JAX random key .*; got int"),
    "a seed for init": (lambda: model()[0].init(0), "must be a JAX random key .*; got int"),
    "key and params exchanged": (lambda: model()[0].sample(KEY, {}, 4), "random key .*; got dict"),
    "a timestep for a time": (lambda: call("score", X, 500), r"must lie in \[0, 1\]"),
    "a label without classes": (lambda: call("invert", X, cond=1), "this model is unconditional"),
    "a name for a config": (lambda: dfn.build("ddpm"), "a config is a ConfigDict, from dfn.default_config.* got str"),
    "a dict for a config": (lambda: dfn.build({"data": {}}), "a config is a ConfigDict.* got dict"),
    "a name for a section": (lambda: small_config(sampler="ddim"), "config.sampler is a section: pass a dict"),
    "an unknown section": (lambda: small_config(backbones={}), "no section or field 'backbones'; it has backbone"),
    "levels beyond the last": (
        lambda: likelihood.uniform_dequantize(KEY, jnp.full((2, 2), 300)),
        r"must lie in 0 ... 255; got 300 to 300",
    ),
    "pixels for scaled data": (
        lambda: likelihood.noise_dequantize(KEY, 100 * X, grids.karras(5)[-1]),
        r"lie in \[-1, 1\]; got 100.0 to 100.0: scale",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_what_to_do(name):
    run, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        run()


def test_old_keys_and_lists_of_labels_are_taken():
    assert np.isfinite(call("sample", jax.random.PRNGKey(0), 4, cond=[0, 1, 2, 0], num_classes=3).x0).all()


@pytest.fixture
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"weight": "min_snr", "time_sampler": "stratified"}, "sampler": {"cfg_scale": 2.0, "eta": 0.5}},
        {"loss": {"weight": "sigmoid", "loss_type": "huber"}, "parameterization": "v", "self_conditioning": 1.0},
        {
            "variance": "learned_range",
            "loss": {"objective": "vlb", "time_sampler": "loss_second_moment"},
            "backbone": {"learned_variance": True},
            "sampler": {"name": "ancestral"},
        },
        {"noise_schedule": {"process": "flow"}, "parameterization": "velocity", "sampler": {"name": "heun"}},
    ],
    ids=["guided", "self_conditioned", "learned_variance", "flow"],
)
def test_a_model_works_under_strict_dtype_promotion(sections):
    config = small_config(num_classes=3, **sections)
    diffusion, objective = dfn.build(config), dfn.build_objective(config)
    params, extras = some_params(diffusion.init), () if objective.extras is None else (objective.extras,)
    labels = jnp.array([0, 1, 2, 0])
    batch = {"image": X, "label": labels}
    gradient = jax.eval_shape(jax.grad(lambda params: objective.loss(params, KEY, batch, *extras)[0].mean()), params)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
    samples = jax.eval_shape(lambda params: diffusion.sample(params, KEY, 4, cond=labels), params)
    assert samples.x0.dtype == jnp.float32
    jax.eval_shape(lambda params: diffusion.score(params, X, 0.5, cond=1), params)
    jax.eval_shape(lambda params: diffusion.invert(params, X, cond=1), params)
