"""Mistakes of a first day: each is refused at once, with what was given and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_config, some_params

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, likelihood, losses, oracles, parameterizations, solvers

X, KEY, LEVEL, LEVELS = jnp.ones((4, 2)), jax.random.key(0), dfn.Level(0.8, 0.6, 0.0), grids.karras(5)
LABELS, DENOISE = jnp.arange(4), oracles.gaussian(0.0, 1.0)
EPSILON = parameterizations.epsilon


def of_labels(params, x, t, cond):
    return x * cond[:, None].astype(x.dtype)


CONDITIONAL = dfn.make_denoiser(of_labels, None, EPSILON)


def needs_three(levels):
    """A solver of at least three levels."""
    if levels.sigma.shape[0] < 3:
        raise ValueError("this solver needs at least 3 levels")
    return solvers.ddim(levels)


def model(**options):
    diffusion = dfn.build(small_config(**options))
    return diffusion, some_params(diffusion.init)


MISTAKES = {
    "a name for a parameterization": (
        lambda: dfn.make_denoiser(of_labels, None, "epsilon"),
        r"got 'epsilon': pass parameterizations.epsilon",
    ),
    "edm without its brackets": (
        lambda: dfn.make_denoiser(of_labels, None, parameterizations.edm),
        r"got the function edm: call it, edm\(...\)",
    ),
    "a name in a loss": (lambda: losses.denoising_loss(X, X, X, LEVEL, "v"), "got 'v': pass parameterizations.v"),
    "a name for a weight": (
        lambda: losses.denoising_loss(X, X, X, LEVEL, EPSILON, weight="snr"),
        r"a function of the level, such as losses.snr; got 'snr'",
    ),
    "min_snr without its brackets": (
        lambda: losses.denoising_loss(X, X, X, LEVEL, EPSILON, weight=losses.min_snr),
        r"got min_snr: call it, losses.min_snr\(...\)",
    ),
    "a name for an error": (
        lambda: losses.denoising_loss(X, X, X, LEVEL, EPSILON, error="mse"),
        r"such as losses.mse; got 'mse'",
    ),
    "the constructor for a solver": (
        lambda: dfn.sample(KEY, DENOISE, solvers.ddim, X),
        r"made from levels, ddim\(levels\); got the function ddim itself",
    ),
    "levels for a solver": (lambda: dfn.sample(KEY, DENOISE, LEVELS, X), r"got Level: pass solvers.ddim\(levels\)"),
    "a network for a denoiser": (
        lambda: dfn.sample(KEY, lambda x, level: x, solvers.ddim(LEVELS), X),
        r"a denoiser returns a Prediction; got .*: make one .* make_denoiser\(apply, params, parameterization\)",
    ),
    "a seed for a key": (lambda: dfn.sample(0, DENOISE, solvers.ddim(LEVELS, 1.0), X), "got int"),
    "floats for a key": (
        lambda: dfn.sample(jnp.zeros(2), DENOISE, solvers.ddim(LEVELS, 1.0), X),
        r"such as jax.random.key\(0\); got an array of float32, shape \(2,\)",
    ),
    "integers for x": (lambda: dfn.sample(KEY, DENOISE, solvers.ddim(LEVELS), jnp.ones((4, 2), int)), "floating type"),
    "ascending levels": (lambda: solvers.ddim(LEVELS[::-1]), "must descend from the noisiest"),
    "a solver for levels": (lambda: dfn.invert(DENOISE, solvers.ddim(LEVELS), X), r"Level\[N\], .* got Solver"),
    "a network without cond": (
        lambda: dfn.bind(dfn.make_denoiser(lambda p, x, t: x, None, EPSILON), LABELS)(X, LEVEL),
        r"called as apply\(params, x, t, cond\), but it takes \(p, x, t\)",
    ),
    "a module for its apply": (
        lambda: dfn.make_denoiser(dfn.backbones.MLP(), None, EPSILON)(X, LEVEL),
        r"got MLP: of a linen module pass .*net.apply",
    ),
    "a network that returns a tuple": (
        lambda: dfn.make_denoiser(lambda p, x, t, c: (x, {}), None, EPSILON)(X, LEVEL),
        "must return one array; got tuple",
    ),
    "a tuple for a level": (lambda: dfn.add_noise(X, X, (0.8, 0.6, 0.0)), "must be a Level.* got tuple"),
    "a list for a chain": (lambda: dfn.chain([dfn.clip_x0()]), r"got list: write chain\(\*transforms\)"),
    "a null condition of another length": (
        lambda: guidance.classifier_free(2.0, jnp.zeros(3, int))(CONDITIONAL)(X, LEVEL, LABELS),
        r"null condition has shape \(3,\), .* that of cond, \(4,\)",
    ),
    "a null condition of another kind": (
        lambda: guidance.classifier_free(2.0, {"label": 0})(CONDITIONAL)(X, LEVEL, LABELS),
        "null condition must be a pytree like cond",
    ),
    "a condition of another length": (
        lambda: guidance.classifier_free(2.0, 0)(CONDITIONAL)(X, LEVEL, LABELS[:3]),
        r"each of the 4 examples of x; got shape \(3,\)",
    ),
    "a negative of another length": (
        lambda: guidance.perpendicular_negative(2.0, 0, [jnp.zeros(3, int)], [0.5])(CONDITIONAL)(X, LEVEL, LABELS),
        r"\(3,\), .* that of cond, \(4,\)",
    ),
    "a scale of another length": (
        lambda: guidance.classifier_free(jnp.ones(3), 0)(CONDITIONAL)(X, LEVEL, LABELS),
        r"guidance scale must have shape \[\] or \[4\] .*; got \(3,\)",
    ),
    "a scale of another length, of a classifier": (
        lambda: guidance.classifier(lambda x, level: -jnp.sum(x**2, axis=1), jnp.ones(3))(DENOISE)(X, LEVEL),
        r"guidance scale must have shape \[\] or \[4\] .*; got \(3,\)",
    ),
    "a tiny strength": (
        lambda: dfn.img2img(KEY, DENOISE, solvers.ddim, LEVELS, X, strength=1e-3),
        "strength = 0.001 leaves 0 of the 5 levels .*: use a strength of 0.2 or more",
    ),
    "a strength too small for the solver": (
        lambda: dfn.img2img(KEY, DENOISE, needs_three, LEVELS, X, strength=0.2),
        r"leaves 1 of the 5 levels \(this solver needs at least 3 levels\): use a strength of 0.6 or more",
    ),
    "a made solver for make": (
        lambda: dfn.img2img(KEY, DENOISE, solvers.ddim(LEVELS), LEVELS, X),
        "such as solvers.ddim; got Solver",
    ),
    "a fraction of another length": (lambda: dfn.slerp(X, X, jnp.ones(3)), r"fraction must have shape \[\] or \[4\]"),
    "levels beyond the last": (
        lambda: likelihood.uniform_dequantize(KEY, jnp.full((2, 2), 300)),
        r"must lie in 0 ... 255; got 300 to 300",
    ),
    "pixels for scaled data": (
        lambda: likelihood.noise_dequantize(KEY, 100 * X, LEVELS[-1]),
        r"lie in \[-1, 1\]; got 100.0 to 100.0: scale",
    ),
    "a name for labels": (
        lambda: (made := model(num_classes=3))[0].sample(made[1], KEY, 4, cond="cat"),
        r"labels must be integers .*; got 'cat'",
    ),
    "an array for a batch": (lambda: (made := model())[0].loss(made[1], KEY, X), "a batch must be a dict"),
    "a seed for init": (lambda: model()[0].init(0), "must be a JAX random key .*; got int"),
    "key and params exchanged": (lambda: (made := model())[0].sample(KEY, made[1], 4), "random key .*; got dict"),
    "no config": (lambda: dfn.build("ddpm"), "a config is a ConfigDict, from dfn.default_config.* got str"),
    "a section's name": (lambda: small_config(sampler="ddim"), "config.sampler is a section: pass a dict"),
    "an unknown section": (lambda: small_config(backbones={}), "no section or field 'backbones'; it has backbone"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_what_to_do(name):
    run, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        run()


def test_keys_of_the_old_kind_and_numpy_arrays_are_taken():
    for key in (jax.random.PRNGKey(0), jax.random.split(jax.random.PRNGKey(0), 4)):
        assert np.isfinite(dfn.sample(key, DENOISE, solvers.ddim(LEVELS, 1.0), np.ones((4, 2), np.float32)).x0).all()


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
    batch = {"image": X, "label": jnp.array([0, 1, 2, 0])}
    gradient = jax.eval_shape(jax.grad(lambda params: objective.loss(params, KEY, batch, *extras)[0].mean()), params)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
    samples = jax.eval_shape(lambda params: diffusion.sample(params, KEY, 4, cond=LABELS % 3), params)
    assert samples.x0.dtype == jnp.float32
    jax.eval_shape(lambda params: diffusion.score(params, X, 0.5, cond=1), params)
    jax.eval_shape(lambda params: diffusion.invert(params, X, cond=1), params)
