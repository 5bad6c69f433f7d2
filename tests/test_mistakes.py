"""Plausible mistakes in calls of the public functions: each is a ValueError that says what was given and what to do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, likelihood, losses, oracles, parameterizations, processes, solvers
from diffusers_fn.solvers.plans import check_num_levels

X = jnp.ones((2, 3))
KEY = jax.random.key(0)
PLAN = grids.karras(10)
LEVEL = dfn.Level(0.8, 0.6, 0.0)
EXACT = oracles.gaussian(0.0, 1.0)
LABELS = jnp.array([1, 2])


def apply(params, x, t, cond):
    return x if cond is None else x * cond[:, None]


NETWORK = dfn.make_denoiser(apply, None, parameterizations.epsilon)


def two_levels(levels):
    """A method that needs at least two levels."""
    check_num_levels(levels, 2)
    return solvers.ddim(levels)


class Unconditional(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return x + self.param("bias", nn.initializers.zeros, ())


def guided(transform, cond=LABELS):
    return transform(NETWORK)(X, LEVEL, cond)


def loss(parameterization=parameterizations.v, level=LEVEL, **options):
    return losses.denoising_loss(X, X, X, level, parameterization, **options)


MISTAKES = {
    # Batches that do not fit: both shapes.
    "null condition": (
        lambda: guided(guidance.classifier_free(2.0, jnp.zeros(3, int))),
        r"cond has shape \[2\] and the null condition \[3\]",
    ),
    "negative": (
        lambda: guided(guidance.perpendicular_negative(2.0, 0, [jnp.zeros(3, int)], [1.0])),
        r"cond has shape \[2\] and the null condition \[3\]",
    ),
    "null tree": (lambda: guided(guidance.classifier_free(2.0, {"label": 0})), "must be a tree like cond"),
    "no null condition": (lambda: guided(guidance.classifier_free(2.0, None)), "must be a tree like cond"),
    "scale": (
        lambda: guided(guidance.classifier_free(jnp.ones(3), 0)),
        r"guidance scale must have shape \[\] or \[2\], the batch of x \[2, 3\]; got \[3\]",
    ),
    "scale and null swapped": (lambda: guided(guidance.classifier_free(jnp.array([0]), 7.5)), r"scale .* got \[1\]"),
    "classifier's scale": (
        lambda: guided(guidance.classifier(lambda x, level, cond: x.sum(1), jnp.ones(3))),
        "guidance scale must have shape",
    ),
    "autoguidance's scale": (lambda: guidance.autoguidance(EXACT, jnp.ones(3))(EXACT)(X, LEVEL), "guidance scale must"),
    "phi": (
        lambda: guided(guidance.classifier_free(2.0, 0, rule=guidance.rescaled(jnp.ones(3)))),
        r"phi must have shape \[\] or \[2\]",
    ),
    "eta": (
        lambda: guided(guidance.classifier_free(2.0, 0, rule=guidance.projected(jnp.ones(3)))),
        r"eta must have shape \[\] or \[2\]",
    ),
    "threshold": (
        lambda: guided(guidance.classifier_free(2.0, 0, rule=guidance.projected(0.0, jnp.ones(3)))),
        r"norm_threshold must have shape \[\] or \[2\]",
    ),
    "momentum": (
        lambda: guidance.projected_with_momentum(NETWORK, LABELS, 2.0, 0, momentum=jnp.ones(3))(X, LEVEL, X),
        r"momentum must have shape \[\] or \[2\]",
    ),
    "noise_std": (
        lambda: guidance.dps(lambda x: x, X, noise_std=jnp.ones(3))(EXACT)(X, LEVEL),
        r"noise_std must have shape \[\] or \[2\]",
    ),
    "cond": (
        lambda: guided(guidance.classifier_free(2.0, 0), jnp.array([1, 2, 3])),
        r"x has shape \[2, 3\] and cond \[3\]",
    ),
    "composed conds": (
        lambda: guided(guidance.composed([1.0, 2.0], 0), [LABELS, jnp.ones(3, int)]),
        r"x has shape \[2, 3\] and cond \[3\]",
    ),
    "bound cond": (
        lambda: dfn.sample(None, dfn.bind(NETWORK, jnp.ones(3)), solvers.ddim(PLAN), X),
        r"x has shape \[2, 3\] and an array in cond \[3\]",
    ),
    "fraction": (lambda: dfn.slerp(X, 2 * X, jnp.ones(3)), r"fraction must have shape \[\] or \[2\]"),
    # Something else than a scale, rule, weight, error or transform.
    "scale's name": (lambda: guided(guidance.classifier_free("7.5", 0)), "scale must be a number.*got '7.5'"),
    "denoiser for a scale": (
        lambda: guided(guidance.classifier_free(NETWORK, 0)),
        "scale is a number, an array .* or a function of the level alone",
    ),
    "rule's name": (lambda: guidance.classifier_free(2.0, 0, rule="rescaled"), "rule must be a function"),
    "rule not called": (lambda: guidance.classifier_free(2.0, 0, rule=guidance.rescaled), r"call it first, rescaled\("),
    "params for a denoiser": (
        lambda: guidance.classifier_free(2.0, 0)({"w": 1}),
        "denoise must be a function.*got dict",
    ),
    "bound params": (lambda: dfn.bind({"w": 1}, LABELS), "denoise must be a function.*got dict"),
    "transform not called": (lambda: dfn.chain(dfn.clip_x0)(EXACT), "bound must be a positive number; got function"),
    "chained denoise and number": (lambda: dfn.chain(dfn.clip_x0(), 3), "transform must be a function.*got int"),
    "weight's name": (lambda: loss(weight="min_snr"), r"for instance losses.min_snr; got the string 'min_snr'"),
    "weight not called": (lambda: loss(weight=losses.min_snr), r"call it first, losses.min_snr\("),
    "weight 5": (lambda: loss(weight=5.0), "weight must be a function of the level"),
    "error's name": (lambda: loss(error="l1"), "error must be a function, for instance losses.mse; got str"),
    # Parameterizations.
    "name": (lambda: dfn.make_denoiser(apply, None, "epsilon"), "pass diffusers_fn.parameterizations.epsilon"),
    "name elsewhere": (lambda: loss("v_prediction"), "pass diffusers_fn.parameterizations.v$"),
    "unknown name": (lambda: dfn.to_prediction("noise", X, X, LEVEL), "'noise': pass epsilon, x0, v, score"),
    "edm not called": (lambda: dfn.make_denoiser(apply, None, parameterizations.edm), r"call it, edm\("),
    # Networks.
    "params and apply swapped": (
        lambda: dfn.make_denoiser({"w": 1}, apply, parameterizations.v),
        "the order is make_d",
    ),
    "module for apply": (lambda: dfn.make_denoiser(Unconditional(), {}, parameterizations.v), "pass its .apply"),
    "apply without cond": (
        lambda: dfn.make_denoiser(lambda params, x, t: x, None, parameterizations.v),
        r"its signature is \(params, x, t\). Wrap .* lambda params, x, t, cond: apply\(params, x, t\)",
    ),
    "module without cond": (
        lambda: dfn.make_denoiser(Unconditional().apply, {}, parameterizations.v)(X, LEVEL),
        r"takes 3 positional arguments but 4 were given. Wrap",
    ),
    "unknown option": (
        lambda: dfn.make_denoiser(apply, None, parameterizations.v, train=False),
        "unexpected keyword argument 'train'",
    ),
    # Levels.
    "sigma for a level": (lambda: NETWORK(X, 0.5), "level must be a Level.*got float"),
    "timesteps for a level": (lambda: loss(level=jnp.array([3, 4])), "level must be a Level"),
    "ascending": (lambda: dfn.sample(None, EXACT, solvers.ddim(PLAN[::-1]), X), r"reverse them, levels\[::-1\]"),
    "sigmas for a plan": (lambda: solvers.ddim(np.linspace(1, 0.1, 5)), "must be a plan Level.*got ndarray"),
    "process for a plan": (lambda: solvers.heun(processes.vp()), "must be a plan Level.*got Process"),
    "solver for a plan": (lambda: likelihood.log_prob(KEY, EXACT, solvers.ddim(PLAN), X), "a plan Level.*got Solver"),
    "levels and denoise swapped": (lambda: dfn.invert(PLAN, EXACT, X), "must be a plan Level.*got function"),
    # Samplers.
    "constructor": (lambda: dfn.sample(KEY, EXACT, solvers.ddim, X), r"the function ddim: .* ddim\(levels\)"),
    "levels for a solver": (lambda: dfn.sample(KEY, EXACT, PLAN, X), r"such as solvers.ddim\(levels\)"),
    "solver's name": (lambda: dfn.sample(KEY, EXACT, "ddim", X), "must be a Solver; got str"),
    "inpaint's solver": (lambda: dfn.inpaint(KEY, EXACT, solvers.ddim, X, X, X), "must be a Solver; got the function"),
    "apply for a denoiser": (lambda: dfn.sample(KEY, apply, solvers.ddim(PLAN), X), r"called as denoise\(x, level\)"),
    "array for a prediction": (
        lambda: dfn.sample(KEY, lambda x, level: x, solvers.ddim(PLAN), X),
        r"must return a Prediction\(x0, eps\)",
    ),
    "prediction of another shape": (
        lambda: dfn.sample(KEY, lambda x, level: dfn.Prediction(x[:, :1], x), solvers.ddim(PLAN), X),
        r"predict x0 in x's shape, \(2, 3\); got \(2, 1\)",
    ),
    "memory without a solver for it": (
        lambda: dfn.sample(None, lambda x, level: (EXACT(x, level), x), solvers.ddim(PLAN), X),
        r"solvers.with_memory\(solver\)",
    ),
    "no memory": (
        lambda: dfn.sample(None, EXACT, solvers.with_memory(solvers.ddim(PLAN)), X),
        r"returns \(prediction, memory\).*leave with_memory out",
    ),
    "emit": (lambda: dfn.sample(None, EXACT, solvers.ddim(PLAN), X, emit="x0"), "emit must be a function"),
    "seed of NumPy": (
        lambda: dfn.sample(np.int64(0), EXACT, solvers.ancestral(PLAN), X),
        r"such as jax.random.key\(0\)",
    ),
    "noise for a key": (
        lambda: dfn.sample(X, EXACT, solvers.ancestral(PLAN), X),
        r"key must be a JAX random key .* got an array float32\[2, 3\]",
    ),
    # Editing.
    "strength": (
        lambda: dfn.img2img(KEY, EXACT, two_levels, PLAN, X, strength=0.1),
        "strength 0.1 is too small for this plan of 10 levels and this solver: use 0.2 or more",
    ),
    "strength that rounds": (lambda: dfn.img2img(KEY, EXACT, solvers.ddim, PLAN[:3], X, strength=0.2), "use 0.3334 or"),
    "traced strength": (
        lambda: jax.jit(lambda s: dfn.img2img(KEY, EXACT, solvers.ddim, PLAN, X, strength=s))(0.5),
        "strength sets the number of steps",
    ),
    "solver for its maker": (lambda: dfn.img2img(KEY, EXACT, solvers.ddim(PLAN), PLAN, X), "make must be a function"),
    "inverse's maker": (lambda: dfn.invert(EXACT, PLAN, X, make=solvers.ddim(PLAN)), "make must be a function"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_the_smallest_strength_of_the_message_is_accepted():
    assert dfn.img2img(KEY, EXACT, two_levels, PLAN, X, strength=0.2).x0.shape == X.shape
    assert dfn.img2img(KEY, EXACT, solvers.ddim, PLAN[:3], X, strength=0.3334).x0.shape == X.shape


def test_errors_inside_a_network_pass_through():
    def broken(params, x, t, cond):
        raise TypeError("no such dtype")

    with pytest.raises(TypeError, match="no such dtype"):
        dfn.make_denoiser(broken, None, parameterizations.v)(X, LEVEL)


def test_the_checks_do_not_read_traced_values():
    """Levels, scales, data and key may be traced; then even ascending levels are not refused."""

    @jax.jit
    def sampled(levels, scale, x, key):
        denoise = dfn.bind(guidance.classifier_free(scale, 0)(NETWORK), LABELS)
        return dfn.sample(key, denoise, solvers.ancestral(levels), x).x0

    levels = jax.tree.map(jnp.asarray, PLAN)
    assert sampled(levels, jnp.array([2.0, 3.0]), X, KEY).shape == X.shape
    assert sampled(levels[::-1], jnp.array([2.0, 3.0]), X, KEY).shape == X.shape  # traced: not read


def test_clean_data_is_a_level_of_transforms():
    """At sigma = 0 clipping changes x0 and keeps eps, traced or not, with finite gradients."""
    clean = dfn.Level(1.0, 0.0, 0.0)
    denoise = dfn.clip_x0(0.5)(dfn.make_denoiser(lambda params, x, t, cond: 0.25 * x, None, parameterizations.epsilon))
    for level in (clean, jax.tree.map(jnp.float32, clean)):
        prediction = jax.jit(denoise)(X, level)
        np.testing.assert_array_equal(prediction.x0, 0.5 * X)
        np.testing.assert_array_equal(prediction.eps, 0.25 * X)
    gradient = jax.jit(jax.grad(lambda x, level: denoise(x, level).eps.sum()))(X, jax.tree.map(jnp.float32, clean))
    np.testing.assert_array_equal(gradient, jnp.full((2, 3), 0.25))


@pytest.mark.parametrize("number", [float, np.float64])
def test_parameterizations_at_clean_data(number):
    """x0 = x / alpha for all whose output determines eps; the score's eps, -sigma out, is 0."""
    clean = dfn.Level(number(0.5), number(0.0), number(0.0))
    for name in ("epsilon", "v", "velocity", "score"):
        prediction = dfn.to_prediction(getattr(parameterizations, name), 3.0 * X, X, clean)
        np.testing.assert_allclose(prediction.x0, 2.0 * X, rtol=1e-6)
    np.testing.assert_array_equal(prediction.eps, 0.0 * X)
    with pytest.raises(ValueError, match="'x0' does not determine eps at sigma = 0"):
        dfn.to_prediction(parameterizations.x0, X, X, clean)
    with pytest.raises(ValueError, match="target of parameterization 'score' is infinite at sigma = 0"):
        dfn.target(parameterizations.score, X, X, clean)
