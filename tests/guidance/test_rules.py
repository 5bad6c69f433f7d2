"""Rules and combinations of predictions against the papers' formulas in NumPy; momentum; DiT's guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, oracles, parameterizations, solvers
from diffusers_fn.pretrained import dit

NULL = 9.0
LEVEL = dfn.Level(0.8, 0.6, 3.0)
RNG = np.random.default_rng(0)
OUTS = {label: RNG.standard_normal((3, 4, 2)) + 0.5 for label in (1.0, 2.0, 3.0, NULL)}
X = RNG.standard_normal((3, 4, 2))


def table(parameterization):
    """The denoiser whose output, in this parameterization, is OUTS[label] for all examples of that label."""

    def apply(params, x, t, cond):
        labels = jnp.asarray(cond).reshape(-1, 1, 1)
        repeated = x.shape[0] // 3
        out = lambda label: jnp.repeat(jnp.asarray(OUTS[label]), repeated, axis=0)  # noqa: E731
        return sum(jnp.where(labels == label, out(label), 0.0) for label in OUTS)

    return dfn.make_denoiser(apply, None, parameterization)


def guided_output(transform, parameterization, cond=1.0, level=LEVEL):
    """The guided prediction as an output of this parameterization, [3, 4, 2] in double precision."""
    prediction = jax.jit(lambda x: transform(table(parameterization))(x, level, cond))(jnp.asarray(X))
    return np.asarray(dfn.target(parameterization, prediction.x0, prediction.eps, level))


def std(a):
    return a.std(axis=(1, 2), ddof=1, keepdims=True)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", ["epsilon", "v", "velocity"])
@pytest.mark.usefixtures("x64")
def test_rescaled_guidance_keeps_the_standard_deviation_of_the_output(name, phi, batched):
    on = getattr(parameterizations, name)
    transform = guidance.classifier_free(7.5, NULL, rule=guidance.rescaled(phi, on=on), batched=batched)
    cond, plain = OUTS[1.0], OUTS[NULL] + 7.5 * (OUTS[1.0] - OUTS[NULL])
    wanted = phi * plain * std(cond) / std(plain) + (1 - phi) * plain
    np.testing.assert_allclose(guided_output(transform, on), wanted, rtol=1e-10, atol=1e-12)
    if phi == 1.0:
        np.testing.assert_allclose(std(wanted), std(cond))


def projected(cond, uncond, scale, eta, threshold):
    """Algorithm 1 of Sadat et al., one example at a time."""
    out = []
    for c, u in zip(cond, uncond):
        d = c - u
        if threshold:
            d = d * min(1.0, threshold / np.linalg.norm(d))
        unit = c / np.linalg.norm(c)
        parallel = np.sum(d * unit) * unit
        out.append(c + (scale - 1) * (d - parallel + eta * parallel))
    return np.stack(out)


@pytest.mark.parametrize(("eta", "threshold"), [(0.0, None), (0.5, 2.5), (1.0, 0.3), (0.0, 100.0)])
@pytest.mark.parametrize("name", ["x0", "v"])
@pytest.mark.usefixtures("x64")
def test_projected_guidance_is_the_papers_algorithm(name, eta, threshold):
    on = getattr(parameterizations, name)
    transform = guidance.classifier_free(7.5, NULL, rule=guidance.projected(eta, threshold, on=on))
    wanted = projected(OUTS[1.0], OUTS[NULL], 7.5, eta, threshold)
    np.testing.assert_allclose(guided_output(transform, on), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_projected_with_eta_one_is_linear_guidance():
    rule = guidance.projected(1.0)
    ours = guided_output(guidance.classifier_free(4.0, NULL, rule=rule), parameterizations.epsilon)
    np.testing.assert_allclose(ours, OUTS[NULL] + 4 * (OUTS[1.0] - OUTS[NULL]), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_rules_leave_equal_predictions_unchanged_with_finite_gradients():
    same = lambda x, level, cond: dfn.Prediction(0 * x, x)  # noqa: E731
    for rule in (guidance.projected(0.0, 1.0), guidance.rescaled(0.7, on=parameterizations.x0), guidance.projected()):
        x0 = lambda x, rule=rule: guidance.classifier_free(3.0, 0.0, rule=rule)(same)(x, LEVEL, 1.0).x0  # noqa: E731
        ours, pull = jax.jit(lambda x, x0=x0: (x0(x), jax.grad(lambda x: jnp.sum(x0(x)))(x)))(jnp.asarray(X))
        np.testing.assert_array_equal(ours, 0 * X)
        assert np.all(np.isfinite(pull))


@pytest.mark.usefixtures("x64")
def test_cfg_plus_plus_with_ddim_is_its_algorithm():
    """Chung et al., algorithm 2: x0 from the guided noise, the unconditional noise added back."""
    levels = jax.tree.map(lambda a: a[:-1], grids.leading(dfn.make_noise_schedule(dfn.linear_betas(1000)), 11, 1))
    net = lambda params, x, t, cond: jnp.tanh(x + 0.3 * cond[:, None, None]) * (1 + 1e-3 * t)  # noqa: E731
    denoise = dfn.make_denoiser(net, None, parameterizations.epsilon)
    labels = np.array([1.0, 2.0, 3.0])
    x = X
    for i in range(10):
        alpha, sigma, t = (np.asarray(a)[i] for a in (levels.alpha, levels.sigma, levels.t))
        cond, uncond = (np.tanh(x + 0.3 * c) * (1 + 1e-3 * t) for c in (labels[:, None, None], 0.0))
        x0 = (x - sigma * (uncond + 0.6 * (cond - uncond))) / alpha
        x = x0 if i == 9 else np.asarray(levels.alpha)[i + 1] * x0 + np.asarray(levels.sigma)[i + 1] * uncond
    guided = dfn.bind(guidance.classifier_free_pp(0.6, 0.0)(denoise), jnp.asarray(labels))
    ours = dfn.sample(None, guided, solvers.ddim(levels), jnp.asarray(X)).x0
    np.testing.assert_allclose(ours, x, rtol=1e-9, atol=1e-9)


def test_cfg_plus_plus_at_scale_zero_is_unconditional_bit_for_bit():
    denoise = lambda x, level, cond: dfn.Prediction(2 * x * cond[:, None], -x * cond[:, None])  # noqa: E731
    x, cond = jax.random.normal(jax.random.key(0), (2, 3)), jnp.array([4.0, 8.0])
    ours = jax.jit(lambda s: guidance.classifier_free_pp(s, 0.5)(denoise)(x, LEVEL, cond))(0.0)
    np.testing.assert_array_equal(ours.x0, x)
    np.testing.assert_array_equal(ours.eps, -0.5 * x)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.usefixtures("x64")
def test_composed_guidance_is_a_weighted_sum(batched):
    transform = guidance.composed([2.0, -0.7, lambda level: 5 * level.sigma], NULL, batched=batched)
    ours = guided_output(transform, parameterizations.epsilon, [1.0, 2.0, 3.0])
    none = OUTS[NULL]
    wanted = none + 2 * (OUTS[1.0] - none) - 0.7 * (OUTS[2.0] - none) + 3 * (OUTS[3.0] - none)
    np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-12)


def test_composed_guidance_with_scales_zero_and_one_is_one_prediction_bit_for_bit():
    denoise = lambda x, level, cond: dfn.Prediction(x * cond[:, None], x - cond[:, None])  # noqa: E731
    x, conds = jax.random.normal(jax.random.key(0), (2, 3)), (jnp.array([4.0, 8.0]), jnp.array([2.0, 0.5]))
    run = jax.jit(lambda a, b: guidance.composed([a, b], 16.0)(denoise)(x, LEVEL, conds))
    for weights, cond in (((1.0, 0.0), conds[0]), ((0.0, 1.0), conds[1]), ((0.0, 0.0), jnp.full(2, 16.0))):
        jax.tree.map(np.testing.assert_array_equal, run(*weights), denoise(x, LEVEL, cond))
    assert run._cache_size() == 1


@pytest.mark.usefixtures("x64")
def test_composing_two_gaussian_classes_is_exact():
    """The score of p(x | a) p(x | b) / p(x), the product of the noised densities, written out."""
    classes = {1.0: oracles.gaussian(-0.5, 0.4), 2.0: oracles.gaussian(0.8, 0.7), 0.0: oracles.gaussian(0.1, 1.0)}

    def denoise(x, level, cond):
        exact = {c: denoise(x, level) for c, denoise in classes.items()}
        x0 = sum(jnp.where(cond[:, None] == c, exact[c].x0, 0.0) for c in classes)
        return dfn.Prediction(x0, sum(jnp.where(cond[:, None] == c, exact[c].eps, 0.0) for c in classes))

    x = jnp.asarray(X[..., 0])
    ours = guidance.composed([1.0, 1.0], 0.0)(denoise)(x, LEVEL, [1.0, 2.0])
    precisions = {c: 1 / (0.64 * s**2 + 0.36) for c, s in ((1.0, 0.4), (2.0, 0.7), (0.0, 1.0))}
    means = {1.0: -0.4, 2.0: 0.64, 0.0: 0.08}
    score = sum(sign * precisions[c] * (means[c] - x) for c, sign in ((1.0, 1), (2.0, 1), (0.0, -1)))
    np.testing.assert_allclose(ours.eps, -0.6 * score, rtol=1e-10, atol=1e-12)


def perpendicular(scale, positive, none, negatives):
    """Perp-Neg, one example at a time."""
    out = []
    for i in range(3):
        main = positive[i] - none[i]
        total = main
        for weight, negative in negatives:
            d = negative[i] - none[i]
            total = total - weight * (d - np.sum(d * main) / np.sum(main**2) * main)
        out.append(none[i] + scale * total)
    return np.stack(out)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", ["epsilon", "x0"])
@pytest.mark.usefixtures("x64")
def test_a_perpendicular_negative_removes_its_perpendicular_component(name, batched):
    transform = guidance.perpendicular_negative(7.5, NULL, [2.0, 3.0], [1.5, 0.4], batched=batched)
    wanted = perpendicular(7.5, OUTS[1.0], OUTS[NULL], [(1.5, OUTS[2.0]), (0.4, OUTS[3.0])])
    np.testing.assert_allclose(
        guided_output(transform, getattr(parameterizations, name)), wanted, rtol=1e-10, atol=1e-11
    )
    # A negative equal to the positive has no perpendicular component: linear guidance.
    same = guidance.perpendicular_negative(7.5, NULL, [1.0], [5.0])
    plain = OUTS[NULL] + 7.5 * (OUTS[1.0] - OUTS[NULL])
    np.testing.assert_allclose(guided_output(same, parameterizations.epsilon), plain, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_autoguidance_of_gaussians_sharpens_by_the_formula():
    """eps of N(0, s^2) data is sigma x / (alpha^2 s^2 + sigma^2): guided by data twice as wide."""
    guided = guidance.autoguidance(oracles.gaussian(0.0, 1.0), 3.0)(oracles.gaussian(0.0, 0.5))
    x = jnp.asarray(X)
    wanted = 0.6 * (3 / (0.64 * 0.25 + 0.36) - 2 / (0.64 + 0.36)) * x
    np.testing.assert_allclose(guided(x, LEVEL).eps, wanted, rtol=1e-12)
    rescaled = guidance.autoguidance(oracles.gaussian(0.0, 1.0), 3.0, rule=guidance.rescaled(1.0))
    eps = rescaled(oracles.gaussian(0.0, 0.5))(x, LEVEL).eps
    np.testing.assert_allclose(
        std(np.asarray(eps)), std(np.asarray(oracles.gaussian(0.0, 0.5)(x, LEVEL).eps)), rtol=1e-12
    )


def test_a_python_scale_of_one_skips_the_worse_model():
    def never(x, level, cond=None):
        raise AssertionError

    denoise = oracles.gaussian(0.0, 1.0)
    assert guidance.autoguidance(never, 1)(denoise) is denoise
    assert guidance.classifier(never, 0)(denoise) is denoise


# Momentum.


@pytest.mark.usefixtures("x64")
def test_momentum_is_carried_from_step_to_step():
    """DDIM with projected guidance and momentum, written as a loop."""
    levels = grids.exponential(5, sigma_min=0.2, sigma_max=3.0)
    mean = lambda x, c, sigma: np.tanh(0.7 * x + c) / (1 + sigma)  # noqa: E731
    labels = np.array([1.0, 2.0, 3.0])[:, None, None]
    x, d = X, 0.0
    for i in range(5):
        sigma = np.asarray(levels.sigma)[i]
        cond, uncond = mean(x, labels, sigma), mean(x, 0.0, sigma)
        d = cond - uncond - 0.6 * d
        x0 = projected(cond, cond - d, 4.0, 0.2, 1.5)
        x = x0 if i == 4 else x0 + np.asarray(levels.sigma)[i + 1] * (x - x0) / sigma

    def denoise(x, level, cond):
        x0 = jnp.tanh(0.7 * x + cond[:, None, None]) / (1 + level.sigma)
        return dfn.Prediction(x0, (x - x0) / level.sigma)

    @jax.jit
    def run(solver, x, momentum):
        guided = guidance.projected_with_momentum(
            denoise, jnp.asarray(labels.ravel()), 4.0, 0.0, momentum=momentum, eta=0.2, norm_threshold=1.5
        )
        return dfn.sample(None, guided, solver, x).x0

    solver = solvers.with_memory(solvers.ddim(levels))
    np.testing.assert_allclose(run(solver, jnp.asarray(X), -0.6), x, rtol=1e-10, atol=1e-12)
    again = solvers.with_memory(solvers.ddim(grids.exponential(5, sigma_min=0.1, sigma_max=3.0)))
    assert float(jnp.abs(run(again, jnp.asarray(X), 0.3) - x).max()) > 1e-3
    assert run._cache_size() == 1

    # Without momentum it is the rule, for a method with a history and with noise too.
    plain = guidance.classifier_free(4.0, 0.0, rule=guidance.projected(0.2))(denoise)
    with_momentum = guidance.projected_with_momentum(denoise, labels.ravel(), 4.0, 0.0, momentum=0.0, eta=0.2)
    for solver in (solvers.dpmpp_2m_sde(levels), solvers.heun_churn(levels, 1.0)):
        key = jax.random.key(0)
        wanted = dfn.sample(key, dfn.bind(plain, labels.ravel()), solver, jnp.asarray(X)).x0
        ours = dfn.sample(key, with_momentum, solvers.with_memory(solver), jnp.asarray(X)).x0
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-12)


# DiT.


def test_guidance_of_the_first_three_channels_is_dits():
    """forward_with_cfg(4.0) of the authors' code: four channels, the last one conditional, and a learned range."""
    module, params = published.network("dit_fb", dit.family)
    inputs = published.recorded("dit_fb", "cfg4")
    apply = lambda params, x, t, cond: module.apply({"params": params}, x, t, cond)  # noqa: E731
    denoise = dfn.make_denoiser(apply, params, parameterizations.epsilon)
    x, t = np.moveaxis(inputs["in/x"], 1, -1)[:2], inputs["in/t"][:2]
    labels = inputs["in/y"].astype(np.int32)
    level = dfn.Level(np.full(2, 0.8, np.float32), np.full(2, 0.6, np.float32), t)
    guided = guidance.classifier_free(4.0, int(labels[-1]), channels=3)(denoise)
    prediction = jax.jit(guided)(x, level, labels[:2])
    out = np.moveaxis(inputs["out_f32"], 1, -1)[:2]
    assert published.error(prediction.eps, out[..., :4]) < 2e-5
    assert published.error(2 * prediction.var_frac - 1, out[..., 4:]) < 2e-5


@pytest.mark.parametrize("rule", [guidance.linear, guidance.rescaled(1.0), guidance.projected()])
def test_channels_that_are_not_guided_stay_conditional(rule):
    net = lambda params, x, t, cond: jnp.tanh(x * (1 + cond[:, None]))  # noqa: E731
    denoise = dfn.make_denoiser(net, None, parameterizations.v)
    x, cond, level = jax.random.normal(jax.random.key(0), (3, 4)), jnp.array([0, 1, 2]), dfn.Level(0.6, 0.8, 0.0)
    guided = guidance.classifier_free(5.0, 3, channels=3, rule=rule)(denoise)(x, level, cond)
    plain = denoise(x, level, cond)
    for ours, conditional in ((guided.x0, plain.x0), (guided.eps, plain.eps)):
        np.testing.assert_array_equal(ours[:, 3], conditional[:, 3])
        assert float(jnp.abs(ours - conditional)[:, :3].max(axis=1).min()) > 1e-3


def refused(transform, cond=None):
    return lambda: guided_output(transform, parameterizations.v, cond)


CORRECTED = solvers.predictor_corrector(solvers.ancestral(grids.karras(4)), solvers.langevin(grids.karras(4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guidance.rescaled(1.5), r"phi must lie in \[0, 1\]"),
        (lambda: guidance.projected(0.0, 0.0), r"norm_threshold must be positive, or None"),
        (lambda: guidance.classifier_free(2.0, NULL, channels=0), r"channels.* must be at least 1"),
        (refused(guidance.classifier_free(2.0, NULL, channels=3), 1.0), r"at most 2, the channels of x; got 3"),
        (refused(guidance.classifier_free_pp(2.0, NULL)), r"needs cond"),
        (refused(guidance.composed([1.0, 2.0], NULL), [1.0]), r"2 conditions, .* got 1"),
        (refused(guidance.composed([1.0], NULL)), r"got NoneType"),
        (lambda: guidance.composed([], NULL), r"at least one scale"),
        (lambda: guidance.perpendicular_negative(2.0, NULL, [1.0], []), r"one weight per negative; got 1 and 0"),
        (refused(guidance.perpendicular_negative(2.0, NULL, [1.0], [1.0])), r"needs cond"),
        (lambda: solvers.with_memory(CORRECTED), r"only a table"),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
